"""What a network predicts on held-out images: as they are, in geometric views, and disturbed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sfss_ray.config import EvaluationConfig
from sfss_ray.data.folders import ImageFile
from sfss_ray.evaluation.view_consistency import predict_views

NOISE = 8.0
"""Standard deviation of the noise, of 255."""
COARSE = 4
"""Probabilities are kept at a quarter of the image's size."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of a network on N images of one size."""

    ids: np.ndarray
    """(N, H, W) uint8 class ids."""
    confidence: np.ndarray
    """(N, H, W) uint8 probability of that class, 255 = 1."""
    views: np.ndarray
    """(V, N, H, W) uint8 class ids of the mirrored and zoomed images, on the pixels of the image."""
    disturbed: np.ndarray
    """(D, N, H, W) uint8 class ids of the images with noise, blurred and darkened."""
    coarse: np.ndarray
    """(N, C, H / 4, W / 4) float16 mean probabilities."""

    def save(self, path: Path) -> None:
        """Write a compressed file."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **arrays)

    @staticmethod
    def load(path: Path) -> Predictions:
        """Read a file that `save` wrote."""
        with np.load(path) as stored:
            return Predictions(**stored)


def record_predictions(
    network: Any, images: Sequence[ImageFile], config: EvaluationConfig
) -> Predictions:
    """Predict all images with a network in eval mode."""
    columns: dict[str, list[np.ndarray]] = {field.name: [] for field in fields(Predictions)}
    plain = replace(config, scales=(1.0,), flip=False)
    for number, file in enumerate(images):
        for name, value in _predict(network, file.read(), plain, number).items():
            columns[name].append(value)
    axes = {"views": 1, "disturbed": 1}
    return Predictions(
        **{name: np.stack(values, axes.get(name, 0)) for name, values in columns.items()}
    )


def _predict(
    network: Any, image: np.ndarray, config: EvaluationConfig, number: int
) -> dict[str, np.ndarray]:
    from sfss_ray.evaluation.inference import predict_probabilities

    probabilities = predict_probabilities(network, image, config)
    disturbed = [
        predict_probabilities(network, pixels, config).argmax(0)
        for pixels in disturb(image, number)
    ]
    height, width = image.shape[:2]
    size = (width // COARSE, height // COARSE)
    coarse = [cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in probabilities]
    return {
        "ids": probabilities.argmax(0).astype(np.uint8),
        "confidence": (255 * probabilities.max(0)).round().astype(np.uint8),
        "views": np.stack(predict_views(network, image, config)).astype(np.uint8),
        "disturbed": np.stack(disturbed).astype(np.uint8),
        "coarse": np.stack(coarse).astype(np.float16),
    }


def disturb(image: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Yield an image (H, W, 3) uint8 with noise, blurred, and darkened by a quarter."""
    noise = np.random.default_rng(seed).normal(0, NOISE, image.shape)
    yield (image + noise).round().clip(0, 255).astype(np.uint8)
    yield cv2.GaussianBlur(image, (0, 0), 1.5)
    yield (0.75 * image).round().astype(np.uint8)
