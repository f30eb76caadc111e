"""The embedded default: drawn street scenes and the small weights that ship."""
