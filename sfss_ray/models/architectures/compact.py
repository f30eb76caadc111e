"""A small convolutional segmenter (0.95 M parameters) that adapts in minutes on a CPU.

The encoder goes down to stride 16 with plain 3x3 convolutions, because CPUs run dense convolutions
fastest. A pooled context vector is added at the bottom, and a feature pyramid leads back up to stride
4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class _Residual(nn.Module):
    """Two 3x3 convolutions, added to their input."""

    def __init__(self, width: int):
        super().__init__()
        self.first = _conv(width, width)
        norm = nn.BatchNorm2d(width)
        nn.init.zeros_(norm.weight)  # the block starts as the identity, which eases training
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), norm)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


class CompactBody(nn.Module):
    """Maps images (B, 3, H, W) to features (B, 4 * width, H / 4, W / 4).

    The grids of all stages align exactly if H and W are multiples of 16.
    """

    def __init__(self, width: int = 16):
        super().__init__()
        fused = 4 * width
        self.stem = _conv(3, width, stride=2)
        self.stage4 = nn.Sequential(_conv(width, 2 * width, stride=2), _Residual(2 * width))
        self.stage8 = nn.Sequential(
            _conv(2 * width, 4 * width, stride=2), _Residual(4 * width), _Residual(4 * width)
        )
        self.stage16 = nn.Sequential(
            _conv(4 * width, 8 * width, stride=2), _Residual(8 * width), _Residual(8 * width)
        )
        self.context = nn.Sequential(nn.Conv2d(8 * width, fused, 1), nn.ReLU(inplace=True))
        self.from4 = _conv(2 * width, fused, kernel=1)
        self.from8 = _conv(4 * width, fused, kernel=1)
        self.from16 = _conv(8 * width, fused, kernel=1)
        self.fuse8 = _conv(fused, fused)
        self.fuse4 = _conv(fused, fused)

    def forward(self, images: Tensor) -> Tensor:
        at4 = self.stage4(self.stem(images))
        at8 = self.stage8(at4)
        at16 = self.stage16(at8)
        context = self.context(at16.mean((2, 3), keepdim=True))
        top = self.from16(at16) + context
        middle = self.fuse8(self.from8(at8) + _resize_like(top, at8))
        return self.fuse4(self.from4(at4) + _resize_like(middle, at4))


def _resize_like(x: Tensor, reference: Tensor) -> Tensor:
    return F.interpolate(x, size=reference.shape[-2:], mode="bilinear", align_corners=False)
