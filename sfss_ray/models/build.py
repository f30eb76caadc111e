"""The names that other folders take from here: networks by name, and the model file."""

from __future__ import annotations

from sfss_ray.models.model_file import FORMAT, SourceModel, load_model, save_model
from sfss_ray.models.networks import NETWORKS, build_network
from sfss_ray.models.reading import file_sha256

__all__ = [
    "FORMAT",
    "NETWORKS",
    "SourceModel",
    "build_network",
    "file_sha256",
    "load_model",
    "save_model",
]
