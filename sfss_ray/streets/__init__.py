"""The embedded default: drawn street scenes and small weights that ship with the package."""
