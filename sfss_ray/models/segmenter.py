"""What every network looks like to the rest: RGB in [0, 1] in, features and logits out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class SegmenterOutput(NamedTuple):
    """Both on the grid of the classifier: features (B, F, h, w), logits (B, C, h, w)."""

    features: Tensor
    logits: Tensor


class Segmenter(nn.Module):
    """A body that makes features, a classifier that reads them, and the images' normalisation.

    Args:
        body: (B, 3, H, W) normalised images -> features (B, F, h, w).
        classifier: features -> logits (B, C, h, w) on the same grid.
        mean, std: of RGB images in [0, 1].
        align_corners: how the network's maker scaled logits up; a mismatch costs accuracy.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        classifier: nn.Module,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        align_corners: bool = False,
    ):
        super().__init__()
        self.body = body
        self.classifier = classifier
        self.align_corners = align_corners
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> SegmenterOutput:
        """Features and logits on the network's own grid, for images (B, 3, H, W) in [0, 1]."""
        features = self.body((images - self.mean) / self.std)
        return SegmenterOutput(features, self.classifier(features))

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, C, H, W) at the size of the images."""
        return self.upsample(self(images).logits, images.shape[-2:])

    def upsample(self, logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
        """Scale logits up in float32, with the corner rule the network was made with."""
        return F.interpolate(
            logits.float(), size=tuple(size), mode="bilinear", align_corners=self.align_corners
        )
