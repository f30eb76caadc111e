"""Layers of decode heads on the four stages of a Mix Transformer, with their authors' parameter names.

A head takes stages (B, W_i, H / s, W / s) with s = 4, 8, 16, 32. It returns features (B, F, H / 4, W /
4), after the dropout before the classifier.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.models.segmenter import ResizingHead

DROPOUT = 0.1


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1, groups: int = 1):
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, 1, padding, dilation, groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class SeparableConv(nn.Module):
    """A dilated depthwise convolution, 3x3 by default, then a 1x1 over all channels."""

    def __init__(self, inputs: int, outputs: int, dilation: int, kernel: int = 3):
        super().__init__()
        self.depthwise_conv = ConvNorm(inputs, inputs, kernel, dilation, groups=inputs)
        self.pointwise_conv = ConvNorm(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))


class MMSegHead(ResizingHead):
    """mmsegmentation's SegFormer head: a 1x1 convolution of each stage, and a 1x1 that fuses them."""

    def __init__(self, widths: tuple[int, ...], outputs: int):
        super().__init__()
        self.convs = nn.ModuleList(ConvNorm(width, outputs, 1) for width in widths)
        self.fusion_conv = ConvNorm(len(widths) * outputs, outputs, 1)
        self.dropout = nn.Dropout2d(DROPOUT)

    def forward(self, stages: list[Tensor]) -> Tensor:
        embedded = [conv(stage) for conv, stage in zip(self.convs, stages, strict=True)]
        return self.dropout(self.fusion_conv(concat_stages(embedded, self.align_corners)))


class StageEmbedding(nn.Module):
    """A linear layer over the channels of each cell."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, stage: Tensor) -> Tensor:
        return self.proj(stage.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def concat_stages(stages: list[Tensor], align_corners: bool = False) -> Tensor:
    """Resize all stages to the grid of the first, and concatenate their channels."""
    size = stages[0].shape[-2:]
    resized = [
        F.interpolate(stage, size=size, mode="bilinear", align_corners=align_corners)
        for stage in stages[1:]
    ]
    return torch.cat([stages[0], *resized], 1)
