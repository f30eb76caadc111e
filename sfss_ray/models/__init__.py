"""Segmentation networks, source checkpoints and the model file format."""
