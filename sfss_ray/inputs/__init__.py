"""The inputs of a run: checked once, read once, recorded in its folder."""
