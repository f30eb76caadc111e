"""Inputs of a run: each is checked and read once, and recorded in the run folder."""
