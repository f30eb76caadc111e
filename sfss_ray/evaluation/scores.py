"""Label-free scores of a model, from its predictions on held-out target images and their masks."""

from __future__ import annotations

import numpy as np


class MaskInformation:
    """Mutual information between mask and predicted class, in nats.

    I(mask; class) = H(class) - sum_k (n_k / n) H(class | mask k), over the pixels inside masks, the
    class histograms area-weighted: high only if predictions agree inside masks AND differ between
    them, so a model that predicts one class everywhere scores 0.
    """

    def __init__(self, num_classes: int):
        self.total = np.zeros(num_classes)
        self.conditional = 0.0  # sum_k n_k H(class | mask k)

    def add(self, predictions: np.ndarray, mask_ids: np.ndarray) -> None:
        """Count one image: predictions (H, W) class ids, mask_ids (H, W), 0 = no mask."""
        classes = len(self.total)
        inside = mask_ids > 0
        if not inside.any():
            return
        _, dense = np.unique(mask_ids[inside], return_inverse=True)
        pairs = dense.astype(np.int64) * classes + predictions[inside]
        table = np.bincount(pairs, minlength=(dense.max() + 1) * classes).reshape(-1, classes)
        self.total += table.sum(0)
        self.conditional += float((table.sum(1) * entropy(table)).sum())

    def value(self) -> float:
        """The score: 0 to log(number of classes); 0 when nothing was counted."""
        pixels = self.total.sum()
        if not pixels:
            return 0.0
        return max(0.0, float(entropy(self.total[None])[0] - self.conditional / pixels))


def entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy in nats of each row of counts (K, C); an empty row has 0."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1e-12)
    return -(share * np.log(np.maximum(share, 1e-12))).sum(1)


def predicted_classes(total: np.ndarray, least_share: float = 1e-3) -> int:
    """Number of classes with at least this share of the predicted pixels: the collapse guard."""
    return int((total > least_share * max(total.sum(), 1)).sum())
