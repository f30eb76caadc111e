"""Import of masks that other tools made."""
