"""Masks with classes, of a network that is prompted with class names."""
