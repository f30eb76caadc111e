"""Masks that other tools made, imported as shards."""
