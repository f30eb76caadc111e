"""Agreement of a network with itself over geometric views of an image, a score without labels.

A network that suits its images predicts the same classes for an image, its mirror image and zoomed
copies. Alone, the score compares states of one network that no training has separated: students are
trained to be consistent, whether they are right or wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sfss_ray.config import EvaluationConfig

if TYPE_CHECKING:
    from sfss_ray.models.segmenter import Segmenter

ZOOMS = (0.75, 1.25)
"""Zooms of the views. The mirror image is one more view."""


class ViewConsistency:
    """Mean IoU between the predictions of images and those of their views.

    Each view counts intersections and unions of each class over all images. The score is the mean over
    the views of the mean over the classes that count.

    Args:
        class_ids: The classes that count, 0 where none of their pixels is predicted. Default: those that
            either prediction has.
    """

    def __init__(self, class_ids: np.ndarray | None = None) -> None:
        self.class_ids = class_ids
        self._images: list[np.ndarray] = []  # (views, 2, C): intersections and unions

    @property
    def num_images(self) -> int:
        """The number of images that were added."""
        return len(self._images)

    def add(self, classes: int, predictions: np.ndarray, views: list[np.ndarray]) -> None:
        """Count one image.

        Args:
            classes: C, the number of classes.
            predictions: (H, W) class ids of the image.
            views: (H, W) class ids of each view, on the pixels of the image.
        """
        self._images.append(np.stack([_overlap(predictions, view, classes) for view in views]))

    def value(self) -> float:
        """Return the score, 0 to 1; NaN without images."""
        return self._mean_iou(self._total()) if self._images else float("nan")

    def leave_one_out(self) -> np.ndarray:
        """Return (N,) scores of all images but one, in the order in which the images were added."""
        total = self._total()
        return np.array([self._mean_iou(total - overlaps) for overlaps in self._images])

    def _total(self) -> np.ndarray:
        return np.sum(self._images, axis=0)

    def _mean_iou(self, overlaps: np.ndarray) -> float:
        """Return the mean over views and counted classes of overlaps (views, 2, C)."""
        intersection, union = overlaps[:, 0], overlaps[:, 1]
        present = union > 0
        iou = np.where(present, intersection / np.maximum(union, 1), 0.0)
        if self.class_ids is not None:
            return float(iou[:, self.class_ids].mean())
        return float((iou.sum(-1) / np.maximum(present.sum(-1), 1)).mean())


def _overlap(first: np.ndarray, second: np.ndarray, classes: int) -> np.ndarray:
    """Return (2, C) pixels in the intersection and in the union of each class."""
    both = np.bincount(first[first == second], minlength=classes)
    histograms = [np.bincount(ids.ravel(), minlength=classes) for ids in (first, second)]
    return np.stack([both, histograms[0] + histograms[1] - both])


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
        from sfss_ray.evaluation.inference import predict_probabilities

        consistency = ViewConsistency()
        plain = replace(self.config, scales=(1.0,), flip=False)
        for image in self.images:
            probabilities = predict_probabilities(network, image, plain)
            views = predict_views(network, image, plain)
            consistency.add(len(probabilities), probabilities.argmax(0), views)
        return consistency


def predict_views(
    network: Segmenter, image: np.ndarray, config: EvaluationConfig
) -> list[np.ndarray]:
    """Return the class ids (H, W) of each view on the pixels of the image.

    Args:
        network: In eval mode.
        image: (H, W, 3) uint8.
        config: Each view is predicted at one zoom and without test-time augmentation.
    """
    from sfss_ray.evaluation.inference import predict_probabilities

    plain = replace(config, scales=(1.0,), flip=False)
    mirrored = np.ascontiguousarray(image[:, ::-1])
    views = [predict_probabilities(network, mirrored, plain).argmax(0)[:, ::-1]]
    for zoom in ZOOMS:
        zoomed = replace(plain, scales=(zoom,))
        views.append(predict_probabilities(network, image, zoomed).argmax(0))
    return views
