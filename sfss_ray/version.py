"""The version of this package, on its own so that every layer may state it."""

__version__ = "0.1.0"
