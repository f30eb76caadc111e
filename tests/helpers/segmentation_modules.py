"""Small modules of the shapes that networks of the field have: encoders, decoders, heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_CLASSES = 5


class UNet(nn.Module):
    """Joins each stage with the one above, so sides must be multiples of 2**depth.

    The logits have the size of the image. With `norm` each stage has BatchNorm.
    """

    def __init__(self, depth: int = 4, classes: int = NUM_CLASSES, norm: bool = True):
        super().__init__()
        torch.manual_seed(0)
        widths = [3] + [8] * depth
        self.down = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, 8, 3, 2, 1), nn.BatchNorm2d(8) if norm else nn.Identity()
            )
            for width in widths[:-1]
        )
        self.up = nn.ModuleList(nn.Conv2d(16, 8, 3, 1, 1) for _ in range(depth - 1))
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> Any:
        stages = []
        for stage in self.down:
            x = F.relu(stage(x), inplace=True)
            stages.append(x)
        x = stages.pop()
        for stage in self.up:
            x = torch.cat([F.interpolate(x, scale_factor=2), stages.pop()], 1)
            x = F.relu(stage(x), inplace=True)
        return F.interpolate(self.head(x), scale_factor=2)


class AddedScores(nn.Module):
    """Class scores of stages at strides 4, 8 and 16 are enlarged and added, as in FCN."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, NUM_CLASSES, 3, 2, 1)  # as many outputs as classes, but no scores
        self.stages = nn.ModuleList(
            nn.Conv2d(NUM_CLASSES if i == 0 else 16, 16, 3, 2, 1) for i in range(3)
        )
        self.scores = nn.ModuleList(nn.Conv2d(16, NUM_CLASSES, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        size, total = x.shape[-2:], torch.zeros(())
        x = self.stem(x).relu()
        for stage, score in zip(self.stages, self.scores, strict=True):
            x = stage(x).relu()
            total = total + F.interpolate(score(x), size, mode="bilinear")
        return total


class Patches(nn.Module):
    """Takes sides that are multiples of its patch, as transformers do."""

    def __init__(self, patch: int):
        super().__init__()
        self.patch = patch
        self.embed = nn.Conv2d(3, 8, patch, patch)
        self.head = nn.Conv2d(8, NUM_CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        assert all(side % self.patch == 0 for side in x.shape[-2:]), "no whole patches"
        return self.head(self.embed(x))


class OneSize(nn.Module):
    """Takes images of one size only."""

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size
        self.head = nn.Conv2d(3, NUM_CLASSES, 3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-2:] == self.size, "not my size"
        return self.head(x)


class PooledNorm(nn.Module):
    """Has a branch that normalises the mean of the whole image, as DeepLabV3 has."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 8, 3, 4, 1)
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.head = nn.Conv2d(8, NUM_CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        return self.head(features + self.pooled(features))
