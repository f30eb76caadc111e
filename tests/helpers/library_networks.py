"""Small networks of segmentation_models_pytorch and timm with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_CLASSES = 5


def smp_network(name: str) -> nn.Module:
    """Return a network of segmentation_models_pytorch on a small encoder."""
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    build: Any = getattr(smp, name)
    return build("resnet18", encoder_weights=None, classes=NUM_CLASSES).eval()


class TimmSegmenter(nn.Module):
    """A backbone of timm and a convolution on its features at stride 8, as users write it."""

    def __init__(self, backbone: str):
        super().__init__()
        import timm

        self.backbone = timm.create_model(
            backbone, pretrained=False, features_only=True, out_indices=(1,)
        )
        (width,) = self.backbone.feature_info.channels()
        self.neck = nn.Sequential(nn.Conv2d(width, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Conv2d(16, NUM_CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        (features,) = self.backbone(images)
        logits = self.head(self.neck(features))
        return F.interpolate(logits, images.shape[-2:], mode="bilinear")


def timm_network(backbone: str) -> nn.Module:
    """Return a `TimmSegmenter` with random weights in eval mode."""
    torch.manual_seed(0)
    return TimmSegmenter(backbone).eval()
