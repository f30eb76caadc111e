"""mIoU from ONE confusion matrix over all images, as the field reports it."""

from __future__ import annotations

import numpy as np

from sfss_ray.data.class_sets import IGNORE_INDEX


class ConfusionMatrix:
    """Counts of (label, prediction) over valid pixels: `counts[label, prediction]`, int64 (C, C)."""

    def __init__(self, num_classes: int):
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def add(self, labels: np.ndarray, predictions: np.ndarray) -> None:
        """Count one image: both (H, W) ids; label 255 is ignored."""
        classes = len(self.counts)
        valid = labels != IGNORE_INDEX
        pairs = labels[valid].astype(np.int64) * classes + predictions[valid]
        self.counts += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def iou(self) -> np.ndarray:
        """(C,) IoU in percent; NaN for classes that no label shows (absent from the data)."""
        hit = np.diag(self.counts).astype(np.float64)
        shown = self.counts.sum(1)
        union = shown + self.counts.sum(0) - hit
        return np.where(shown > 0, 100 * hit / np.maximum(union, 1), np.nan)

    def official_iou(self) -> np.ndarray:
        """(C,) IoU in percent as cityscapesScripts counts it: a class that is predicted and that no
        label shows has 0; NaN only for classes that are neither shown nor predicted.
        """
        hit = np.diag(self.counts).astype(np.float64)
        union = self.counts.sum(1) + self.counts.sum(0) - hit
        return np.where(union > 0, 100 * hit / np.maximum(union, 1), np.nan)

    def official_miou(self, countable: np.ndarray | None = None) -> float:
        """Mean of `official_iou` over the classes that have one; NaN without labels.

        countable: (C,) bool, the classes that labels of this kind can show at all; default all.
        """
        iou = self.official_iou() if countable is None else self.official_iou()[countable]
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")

    def recall(self) -> np.ndarray:
        """(C,) share of each class's labelled pixels that are right, in percent; NaN where absent."""
        shown = self.counts.sum(1)
        hit = np.diag(self.counts)
        return np.where(shown > 0, 100 * hit / np.maximum(shown, 1), np.nan)

    def label_share(self) -> np.ndarray:
        """(C,) percent of the valid pixels that each class has in the labels."""
        shown = self.counts.sum(1)
        return 100 * shown / max(int(shown.sum()), 1)

    def miou(self) -> float:
        """Mean IoU in percent over the classes that the labels show; NaN without labels."""
        iou = self.iou()
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")

    def pixel_accuracy(self) -> float:
        """Share of valid pixels that are right, in percent; NaN without labels."""
        total = self.counts.sum()
        return float(100 * np.diag(self.counts).sum() / total) if total else float("nan")
