"""Confidence thresholds per class, and the pixel weights that follow from them."""

from __future__ import annotations

import torch
from torch import Tensor

from sfss_ray.config import LossConfig

_BINS = 100
_DECAY = 0.98  # share of the histogram that a step keeps: about the last 50 steps count


class ClassThresholds:
    """Confidence thresholds that keep the most confident share of each class's own pixels.

    A running histogram of confidence per predicted class gives the quantile. Rare or hard classes get a
    lower threshold than common ones, so they keep their best pixels. Updates are summed over all
    workers, so every worker has the same thresholds.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.histogram = torch.zeros(num_classes, _BINS, dtype=torch.float64, device=device)

    def count(self, labels: Tensor, confidence: Tensor) -> Tensor:
        """Return the pixel counts (C, bins) of a batch.

        Args:
            labels: (...) int64 class ids.
            confidence: (...) in [0, 1].
        """
        classes = len(self.histogram)
        bins = (confidence.float() * _BINS).long().clamp(0, _BINS - 1)
        flat = torch.bincount((labels * _BINS + bins).flatten(), minlength=classes * _BINS)
        return flat.view(classes, _BINS).double()

    def update(self, counts: Tensor, first_part: bool = True) -> None:
        """Add counts (C, bins), summed over workers. Older counts fade once per step.

        `first_part` is False for the second and later parts of an accumulated batch.
        """
        self.histogram = (_DECAY if first_part else 1.0) * self.histogram + counts

    def thresholds(self, kept_share: float, cap: float) -> Tensor:
        """Return thresholds (C,) float32, 0 for classes without pixels so far.

        Args:
            kept_share: At least this share of a class's pixels lies above its threshold, 0 to 1.
            cap: No threshold is higher, 0 to 1.
        """
        total = self.histogram.sum(1, keepdim=True)
        above = self.histogram.flip(1).cumsum(1).flip(1)  # pixels in this bin or a higher one
        keeps_share = above >= kept_share * total
        threshold = (keeps_share.sum(1) - 1).clamp(min=0) / _BINS
        threshold = torch.where(total[:, 0] > 0, threshold, torch.zeros_like(threshold))
        return threshold.clamp(max=cap).float()


def accepted_pixels(
    labels: Tensor, confidence: Tensor, thresholds: Tensor, config: LossConfig
) -> Tensor:
    """Return (B, H, W) bool: the pixels whose pseudo-label is confident enough to train on.

    class_adaptive: the confidence reaches the threshold of its class. paper_like: it reaches
    `confidence`.

    Args:
        labels: (B, H, W) pseudo-labels.
        confidence: (B, H, W) in [0, 1].
        thresholds: (C,).
        config: `thresholds` and `confidence`.
    """
    if config.thresholds == "paper_like":
        return confidence >= config.confidence
    return confidence >= thresholds[labels]


def pixel_weights(accepted: Tensor, config: LossConfig) -> Tensor:
    """Return the weights (B, H, W) of the segmentation loss.

    class_adaptive: 1 for accepted pixels, else 0. paper_like: the share of the image's pixels that are
    accepted, the same for all its pixels.

    Args:
        accepted: (B, H, W) bool, see `accepted_pixels`.
        config: `thresholds`.
    """
    weights = accepted.float()
    if config.thresholds == "paper_like":
        return weights.mean((1, 2), keepdim=True).expand_as(weights)
    return weights
