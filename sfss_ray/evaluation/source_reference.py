"""What a source model predicts on held-out images: the reference of its students' scores.

Its most confident pixels of each class are anchors. They are likely right even where the source model as
a whole is poor, so a student that gives them up has probably become worse.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from sfss_ray.storage.files import write_bytes
from sfss_ray.storage.places import Place

ANCHOR_SHARE = 0.5
"""Share of the pixels of each predicted class that are anchors, the most confident ones."""
MIN_SHARE = 1e-3
"""Classes with fewer of the predicted pixels are noise, and count in no score."""
MAX_GRID_PIXELS = 1 << 16
"""Anchors lie on a grid of at most about this many pixels of an image."""
NO_ANCHOR = -1


@dataclass(frozen=True)
class SourceReference:
    """Predictions of a source model on N held-out images, in their order."""

    class_share: tuple[float, ...]
    """(C,) share of the pixels that each class is predicted for."""
    anchors: tuple[np.ndarray, ...] = field(compare=False)
    """For each image (h, w) int16, the class of each anchor and NO_ANCHOR elsewhere. The grid is that of
    `on_grid`."""

    @property
    def classes(self) -> np.ndarray:
        """The ids of the classes that count, rising."""
        return np.flatnonzero(np.array(self.class_share) > MIN_SHARE)

    @staticmethod
    def of(predictions: Iterable[np.ndarray]) -> SourceReference | None:
        """Find the anchors in probabilities (C, H, W), one array for each image; None without images."""
        histogram: np.ndarray | None = None
        labels, confidences = [], []
        for probabilities in predictions:
            ids = probabilities.argmax(0)
            counts = np.bincount(ids.ravel(), minlength=len(probabilities))
            histogram = counts if histogram is None else histogram + counts
            labels.append(on_grid(ids).astype(np.int16))
            confidences.append(on_grid(probabilities.max(0)).astype(np.float32))
        if histogram is None:
            return None
        share = tuple((histogram / histogram.sum()).tolist())
        return SourceReference(share, _most_confident(labels, confidences))

    def save(self, path: Place) -> None:
        """Write a compressed file, whole or not at all."""
        file = io.BytesIO()
        np.savez_compressed(file, np.array(self.class_share), *self.anchors)
        write_bytes(path, file.getvalue())

    @staticmethod
    def load(path: Place) -> SourceReference:
        """Read a file that `save` wrote."""
        with np.load(io.BytesIO(path.read_bytes())) as stored:
            share, *anchors = (stored[f"arr_{number}"] for number in range(len(stored)))
        return SourceReference(tuple(share.tolist()), tuple(anchors))


def on_grid(plane: np.ndarray) -> np.ndarray:
    """Return the values of a plane (H, W) on every n-th row and column, so that few enough are left."""
    step = max(1, int(np.ceil(np.sqrt(plane.size / MAX_GRID_PIXELS))))
    return plane[::step, ::step]


def _most_confident(
    labels: list[np.ndarray], confidences: list[np.ndarray]
) -> tuple[np.ndarray, ...]:
    """Return the labels (h, w) of each image, NO_ANCHOR below the limit of confidence of the class."""
    all_labels = np.concatenate([ids.ravel() for ids in labels])
    all_confidences = np.concatenate([values.ravel() for values in confidences])
    limits = np.zeros(all_labels.max() + 1, np.float32)
    for label in np.unique(all_labels):
        of_class = all_confidences[all_labels == label]
        # The method gives a confidence that occurs, so that rounding leaves no class without anchors.
        limits[label] = np.quantile(of_class, 1 - ANCHOR_SHARE, method="lower")
    return tuple(
        np.where(values >= limits[ids], ids, np.int16(NO_ANCHOR))
        for ids, values in zip(labels, confidences, strict=True)
    )


class KeptAnchors:
    """Share of a source model's anchors that a student predicts alike, 0 to 1.

    The mean over the classes that the source model predicts of the share of their anchors that are kept.
    Images are added in the order of the reference.
    """

    def __init__(self, reference: SourceReference):
        self.reference = reference
        self._images: list[np.ndarray] = []  # (2, C): anchors, and kept anchors

    def add(self, predictions: np.ndarray) -> None:
        """Count the next image: (H, W) class ids."""
        anchors = self.reference.anchors[len(self._images)]
        classes = len(self.reference.class_share)
        is_anchor = anchors != NO_ANCHOR
        labels = anchors[is_anchor]
        is_kept = on_grid(predictions)[is_anchor] == labels
        counts = [np.bincount(ids, minlength=classes) for ids in (labels, labels[is_kept])]
        self._images.append(np.stack(counts))

    def value(self) -> float:
        """Return the share; NaN without images."""
        return self._share(self._total()) if self._images else float("nan")

    def leave_one_out(self) -> np.ndarray:
        """Return (N,) shares over all images but one, in the order in which the images were added."""
        total = self._total()
        return np.array([self._share(total - counts) for counts in self._images])

    def _total(self) -> np.ndarray:
        return np.sum(self._images, axis=0)

    def _share(self, counts: np.ndarray) -> float:
        anchors, still_there = counts[:, self.reference.classes]
        present = anchors > 0
        if not present.any():
            return float("nan")
        return float((still_there[present] / anchors[present]).mean())
