"""The network that student and teacher are: a segmenter that also returns embeddings."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.config import TrainConfig
from sfss_ray.method.cell_grid import cell_means
from sfss_ray.method.mask_space import MaskSpace
from sfss_ray.models.segmenter import Segmenter

MIN_STRIDE = 4
"""Pixels per cell of the contrast, at least. Halving the stride makes it four times as expensive."""


class NetworkOutput(NamedTuple):
    """Outputs of a `ContrastNet`, each on its own grid."""

    logits: Tensor
    """(B, C, h, w), float32."""
    embeddings: Tensor
    """(B, D, h', w') of length 1, float32."""
    mask_features: Tensor | None = None
    """(B, W, h', w'), what masks are described by; None where their geometry is enough."""


class ContrastNet(nn.Module):
    """A segmenter with L2-normalised embeddings of its grid cells.

    With projection `none` the embeddings are the features that the classifier reads, so the contrast
    shapes what decides the classes. With `mlp` a new projection head stands in between.
    """

    def __init__(self, segmenter: Segmenter, config: TrainConfig):
        super().__init__()
        projection, embedding_dim = config.loss.projection, config.loss.embedding_dim
        self.autocast_to_bf16 = config.precision == "bf16"
        self.segmenter = segmenter
        width = segmenter.feature_width
        self.embedding_dim = embedding_dim if projection == "mlp" else width
        self.projection: nn.Module = nn.Identity()
        if projection == "mlp":
            self.projection = nn.Sequential(
                nn.Conv2d(width, embedding_dim, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(embedding_dim, embedding_dim, 1),
            )

        space = config.loss.neighbour_space
        needs_space = config.loss.asks_neighbours and space not in ("geometry", "sam")
        self.mask_space = MaskSpace(space, width) if needs_space else None

    def forward(self, images: Tensor) -> NetworkOutput:
        """Return logits, embeddings, and the features of masks where they are needed.

        Args:
            images: (B, 3, H, W) float in [0, 1].
        """
        # Autocast covers the networks alone: losses and similarities stay in float32.
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast_to_bf16):
            features, logits = self.segmenter(images)
            features = self._on_contrast_grid(features, images)
            embeddings = self.projection(features)
            mask_features = None
            if self.mask_space is not None and self.mask_space.uses_features:
                mask_features = self.mask_space(features).float()
        embeddings = F.normalize(embeddings.float(), dim=1)
        return NetworkOutput(logits.float(), embeddings, mask_features)

    def _on_contrast_grid(self, features: Tensor, images: Tensor) -> Tensor:
        """Average features that are finer than stride MIN_STRIDE, whose contrast would cost too much."""
        grid = [math.ceil(side / MIN_STRIDE) for side in images.shape[-2:]]
        if features.shape[-2] <= grid[0] or features.shape[-1] <= grid[1]:
            return features
        return cell_means(features, (grid[0], grid[1]), self.segmenter.align_corners)
