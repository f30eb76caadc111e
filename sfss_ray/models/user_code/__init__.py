"""Modules that users bring, and the code that must travel to workers with them."""
