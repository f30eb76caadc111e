"""Agreement of a network with itself over geometric views of an image, a score without labels.

A network that suits its images predicts the same classes for an image, its mirror image and zoomed
copies. The score compares states of one network that no training has separated: students are trained to
be consistent, whether they are right or wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sfss_ray.config import EvaluationConfig
from sfss_ray.evaluation.inference import predict_probabilities
from sfss_ray.models.segmenter import Segmenter

ZOOMS = (0.75, 1.25)
"""Zooms of the views. The mirror image is one more view."""


class ViewConsistency:
    """Mean IoU between the predictions of images and those of their views.

    Each view counts intersections and unions of each class over all images. The score is the mean over
    the views of the mean over the classes that either prediction has.
    """

    def __init__(self) -> None:
        self.num_images = 0
        self._overlaps: np.ndarray | None = None  # (views, 2, C): intersections and unions

    def add(self, classes: int, predictions: np.ndarray, views: list[np.ndarray]) -> None:
        """Count one image.

        Args:
            classes: C, the number of classes.
            predictions: (H, W) class ids of the image.
            views: (H, W) class ids of each view, on the pixels of the image.
        """
        overlaps = np.stack([_overlap(predictions, view, classes) for view in views])
        self._overlaps = overlaps if self._overlaps is None else self._overlaps + overlaps
        self.num_images += 1

    def value(self) -> float:
        """Return the score, 0 to 1; NaN without images."""
        return float("nan") if self._overlaps is None else _mean_iou(self._overlaps)


def _overlap(first: np.ndarray, second: np.ndarray, classes: int) -> np.ndarray:
    """Return (2, C) pixels in the intersection and in the union of each class."""
    both = np.bincount(first[first == second], minlength=classes)
    histograms = [np.bincount(ids.ravel(), minlength=classes) for ids in (first, second)]
    return np.stack([both, histograms[0] + histograms[1] - both])


def _mean_iou(overlaps: np.ndarray) -> float:
    """Return the mean over views and present classes of overlaps (views, 2, C)."""
    intersection, union = overlaps[:, 0], overlaps[:, 1]
    present = union > 0
    iou = np.where(present, intersection / np.maximum(union, 1), 0.0)
    return float((iou.sum(-1) / np.maximum(present.sum(-1), 1)).mean())


@dataclass(frozen=True)
class ConsistencyProbe:
    """Scores the view consistency of a network on a few images, read once.

    The network sees each image as evaluation shows it, at one zoom and without test-time augmentation.
    """

    images: tuple[np.ndarray, ...]
    """(H, W, 3) uint8 each."""
    config: EvaluationConfig

    def score(self, network: Segmenter) -> ViewConsistency:
        """Return the consistency of a network in eval mode."""
        consistency = ViewConsistency()
        plain = replace(self.config, scales=(1.0,), flip=False)
        for image in self.images:
            probabilities = predict_probabilities(network, image, plain)
            views = list(_view_predictions(network, image, plain))
            consistency.add(len(probabilities), probabilities.argmax(0), views)
        return consistency


def _view_predictions(
    network: Segmenter, image: np.ndarray, config: EvaluationConfig
) -> Iterator[np.ndarray]:
    """Yield the class ids (H, W) of each view on the pixels of the image."""
    mirrored = np.ascontiguousarray(image[:, ::-1])
    yield predict_probabilities(network, mirrored, config).argmax(0)[:, ::-1]
    for zoom in ZOOMS:
        zoomed = replace(config, scales=(zoom,))
        yield predict_probabilities(network, image, zoomed).argmax(0)
