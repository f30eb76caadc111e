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

    def add(self, labels: np.ndarray, predictions: np.ndarray) -> None:
        """Count one image: both (H, W) train ids; pixels with label 255 are ignored."""
        classes = len(self.counts)
        valid = labels != IGNORE_INDEX
        pairs = labels[valid].astype(np.int64) * classes + predictions[valid]
        self.counts += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def iou(self) -> np.ndarray:
        """Return (C,) IoU in percent, tp / (tp + fp + fn); NaN for classes absent from the labels."""
        correct = np.diag(self.counts).astype(np.float64)
        labelled = self.counts.sum(1)
        union = labelled + self.counts.sum(0) - correct
        return np.where(labelled > 0, 100 * correct / np.maximum(union, 1), np.nan)

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

    def pixel_accuracy(self) -> float:
        """Return the percentage of valid pixels that are correct; NaN without labels."""
        num_valid = self.counts.sum()
        return float(100 * np.diag(self.counts).sum() / num_valid) if num_valid else float("nan")
