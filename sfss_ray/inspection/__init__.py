"""Inspection of masks, source models, data sets and planned runs, before anything runs."""
