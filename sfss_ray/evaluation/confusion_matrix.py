"""mIoU from one confusion matrix over all images, as the field reports it."""

from __future__ import annotations

import numpy as np

from sfss_ray.data.class_sets import IGNORE_INDEX


class ConfusionMatrix:
    """Counts of (label, prediction) pairs over valid pixels.

    `counts[label, prediction]` is int64 (C, C). Rows are labels, columns predictions.
    """

    def __init__(self, num_classes: int):
        self.counts = np.zeros((num_classes, num_classes), np.int64)
        self._images: list[np.ndarray] = []  # (3, C) of each image: correct, labelled, predicted

    def add(self, labels: np.ndarray, predictions: np.ndarray) -> None:
        """Count one image: both (H, W) train ids; pixels with label 255 are ignored."""
        classes = len(self.counts)
        valid = labels != IGNORE_INDEX
        pairs = labels[valid].astype(np.int64) * classes + predictions[valid]
        counts = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        self.counts += counts
        self._images.append(_class_pixels(counts))

    def iou(self) -> np.ndarray:
        """Return (C,) IoU in percent, tp / (tp + fp + fn); NaN for classes absent from the labels."""
        return _iou(_class_pixels(self.counts))

    def official_iou(self) -> np.ndarray:
        """Return (C,) IoU in percent as cityscapesScripts counts it.

        A class that is predicted but absent from the labels has 0. NaN is left for classes that are
        neither labelled nor predicted.
        """
        correct = np.diag(self.counts).astype(np.float64)
        union = self.counts.sum(1) + self.counts.sum(0) - correct
        return np.where(union > 0, 100 * correct / np.maximum(union, 1), np.nan)

    def official_miou(self, countable: np.ndarray | None = None) -> float:
        """Return the mean of `official_iou` without NaN; NaN when there are no labels.

        Args:
            countable: (C,) bool, the classes that labels of this format can contain; default all.
        """
        iou = self.official_iou() if countable is None else self.official_iou()[countable]
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")

    def recall(self) -> np.ndarray:
        """Return (C,) percent of each class's labelled pixels that are correct; NaN where absent."""
        labelled = self.counts.sum(1)
        correct = np.diag(self.counts)
        return np.where(labelled > 0, 100 * correct / np.maximum(labelled, 1), np.nan)

    def label_share(self) -> np.ndarray:
        """Return (C,) percent of the valid pixels that are labelled with each class."""
        labelled = self.counts.sum(1)
        return 100 * labelled / max(int(labelled.sum()), 1)

    def predicted_share(self) -> np.ndarray:
        """Return (C,) percent of the valid pixels that each class is predicted for."""
        return 100 * self.counts.sum(0) / max(int(self.counts.sum()), 1)

    def miou(self) -> float:
        """Return the mean IoU in percent over the classes in the labels; NaN without labels."""
        iou = self.iou()
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")

    def leave_one_out_miou(self) -> np.ndarray:
        """Return (N,) mIoU of all images but one, in the order in which the images were added."""
        if not self._images:
            return np.zeros(0)
        iou = _iou(_class_pixels(self.counts) - np.array(self._images))
        present = np.isfinite(iou)
        return np.where(
            present.any(1), np.nansum(iou, 1) / np.maximum(present.sum(1), 1), float("nan")
        )

    def pixel_accuracy(self) -> float:
        """Return the percentage of valid pixels that are correct; NaN without labels."""
        num_valid = self.counts.sum()
        return float(100 * np.diag(self.counts).sum() / num_valid) if num_valid else float("nan")


def _class_pixels(counts: np.ndarray) -> np.ndarray:
    """Return (3, C) pixels of each class that are correct, labelled, and predicted."""
    return np.stack([np.diag(counts), counts.sum(1), counts.sum(0)])


def _iou(pixels: np.ndarray) -> np.ndarray:
    """Return (..., C) IoU in percent of `_class_pixels` (..., 3, C); NaN for classes without labels."""
    correct, labelled, predicted = np.moveaxis(pixels, -2, 0)
    union = labelled + predicted - correct
    return np.where(labelled > 0, 100 * correct / np.maximum(union, 1), np.nan)
