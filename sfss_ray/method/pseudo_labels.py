"""From the teacher's probabilities to pseudo-labels, their weights, and per-class thresholds."""

from __future__ import annotations

import torch
from torch import Tensor

from sfss_ray.config import LossConfig

_BINS = 100
_MEMORY = 0.98  # share of the histogram that a step keeps: about the last 50 steps count


class ClassThresholds:
    """Per-class confidence thresholds that keep the best share of each class's own pixels.

    A running histogram of confidence per predicted class gives the quantile; rare or hard classes
    get a lower threshold than common ones, so they keep their best pixels. Updated with counts that
    are already summed over all workers, so every worker holds the same thresholds.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.histogram = torch.zeros(num_classes, _BINS, dtype=torch.float64, device=device)

    def count(self, labels: Tensor, confidence: Tensor) -> Tensor:
        """(C, bins) pixel counts of one batch: labels (...) int64, confidence (...) in [0, 1]."""
        classes = len(self.histogram)
        bins = (confidence.float() * _BINS).long().clamp(0, _BINS - 1)
        flat = torch.bincount((labels * _BINS + bins).flatten(), minlength=classes * _BINS)
        return flat.view(classes, _BINS).double()

    def update(self, counts: Tensor, new_step: bool = True) -> None:
        """Let a batch's counts (summed over workers) in; what was seen fades once a step."""
        self.histogram = (_MEMORY if new_step else 1.0) * self.histogram + counts

    def thresholds(self, kept_share: float, cap: float) -> Tensor:
        """(C,) float32: above it lies at least `kept_share` of a class's pixels; at most `cap`."""
        total = self.histogram.sum(1, keepdim=True)
        above = self.histogram.flip(1).cumsum(1).flip(1)  # pixels in this bin or a higher one
        enough = above >= kept_share * total
        lowest_edge = (enough.sum(1) - 1).clamp(min=0) / _BINS
        lowest_edge = torch.where(total[:, 0] > 0, lowest_edge, torch.zeros_like(lowest_edge))
        return lowest_edge.clamp(max=cap).float()


def pixel_weights(
    labels: Tensor, confidence: Tensor, thresholds: Tensor, config: LossConfig
) -> Tensor:
    """(B, H, W) weights of the segmentation loss.

    class_adaptive: 1 where the confidence reaches its class's threshold, else 0. paper_like: the
    share of the image's pixels above `confidence`, the same for all its pixels.
    """
    if config.thresholds == "paper_like":
        share = (confidence >= config.confidence).float().mean((1, 2), keepdim=True)
        return share.expand_as(confidence)
    return (confidence >= thresholds[labels]).float()
