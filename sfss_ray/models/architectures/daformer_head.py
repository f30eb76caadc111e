"""DAFormer's decode head: a linear layer for each stage, and a layer that fuses the stages.

A layer is described by a dict of plain values. Its `type` is `conv`, `sep_conv`, `aspp`,
`rawconv_and_aspp` or `isa`, and the other entries are the arguments of its builder below. The defaults
are those of DAFormer's configurations. Sources: the public code of DAFormer (daformer_head.py,
isa_head.py) and of mmsegmentation (self_attention_block.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.models.architectures.mit_heads import (
    DROPOUT,
    ConvNorm,
    SeparableConv,
    StageEmbedding,
    concat_stages,
)

DILATIONS = (1, 6, 12, 18)
SEPARABLE_CONTEXT = {"type": "aspp", "sep": True}
"""The fusion layer in DAFormer's paper."""
POINTWISE = {"type": "conv", "kernel_size": 1}
"""The fusion layer of HRDA's attention."""
_LAST_STAGE_SCALE = 8
"""With context at the last stage only, that stage is enlarged from stride 32 to stride 4."""


class Context(nn.Module):
    """ASPP: parallel dilated convolutions, optionally with the image's mean, then a 3x3 convolution.

    Args:
        inputs: Channels of the input.
        outputs: Channels of each branch and of the result.
        sep: Whether the dilated convolutions are separable.
        dilations: Dilation of each branch; 1 is a 1x1 convolution.
        pool: Whether there is a branch of the image's mean.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        sep: bool = True,
        dilations: Sequence[int] = DILATIONS,
        pool: bool = False,
    ):
        super().__init__()
        self.image_pool: nn.Module | None = None
        if pool:
            self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNorm(inputs, outputs, 1))
        self.aspp_modules = nn.ModuleList(
            SeparableConv(inputs, outputs, d)
            if sep and d > 1
            else ConvNorm(inputs, outputs, 1 if d == 1 else 3, d)
            for d in dilations
        )
        branches = len(dilations) + int(pool)
        self.bottleneck = ConvNorm(branches * outputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        branches = [module(x) for module in self.aspp_modules]
        if self.image_pool is not None:
            branches.insert(0, self.image_pool(x).expand(-1, -1, *x.shape[-2:]))
        return self.bottleneck(torch.cat(branches, 1))


class SelfAttention(nn.Module):
    """Self-attention among all cells of a small feature map."""

    def __init__(self, width: int, key_query_num_convs: int):
        super().__init__()
        self.key_project = _pointwise_convs(width, key_query_num_convs)
        self.query_project = _pointwise_convs(width, key_query_num_convs)
        self.value_project = nn.Conv2d(width, width, 1)
        self.output_project = ConvNorm(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key = self.query_project(x).flatten(2), self.key_project(x).flatten(2)
        attention = torch.softmax(query.transpose(1, 2) @ key / math.sqrt(query.shape[1]), -1)
        context = self.value_project(x).flatten(2) @ attention.transpose(1, 2)
        return self.output_project(context.view_as(x))


def _pointwise_convs(width: int, count: int) -> nn.Module:
    """Return one 1x1 convolution, or several in sequence."""
    layers = [ConvNorm(width, width, 1) for _ in range(count)]
    return layers[0] if count == 1 else nn.Sequential(*layers)


class InterlacedAttention(nn.Module):
    """ISA (Huang et al., arXiv 1907.12273): attention among distant cells, then within each patch.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the result.
        key_query_num_convs: Number of convolutions that compute keys, and queries.
        down_factor: (height, width) of a patch, in cells.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        key_query_num_convs: int = 1,
        down_factor: Sequence[int] = (8, 8),
    ):
        super().__init__()
        self.patch = (down_factor[0], down_factor[1])
        self.in_conv = ConvNorm(inputs, outputs, 1)
        self.global_relation = SelfAttention(outputs, key_query_num_convs)
        self.local_relation = SelfAttention(outputs, key_query_num_convs)

    def forward(self, x: Tensor) -> Tensor:
        # The map is padded evenly on both sides to whole patches.
        x = self.in_conv(x)
        (rows, columns), (height, width) = self.patch, x.shape[-2:]
        pad_height, pad_width = -height % rows, -width % columns
        top, start = pad_height // 2, pad_width // 2
        x = F.pad(x, (start, pad_width - start, top, pad_height - top))
        batch, channels, padded_height, padded_width = x.shape
        down, across = padded_height // rows, padded_width // columns

        # The cells at one position of all patches form a map for the global relation.
        x = x.view(batch, channels, down, rows, across, columns).permute(0, 3, 5, 1, 2, 4)
        x = self.global_relation(x.reshape(-1, channels, down, across))

        # The cells of one patch form a map for the local relation.
        x = x.view(batch, rows, columns, channels, down, across).permute(0, 4, 5, 3, 1, 2)
        x = self.local_relation(x.reshape(-1, channels, rows, columns))
        x = x.view(batch, down, across, channels, rows, columns).permute(0, 3, 1, 4, 2, 5)
        x = x.reshape(batch, channels, padded_height, padded_width)
        return x[..., top : top + height, start : start + width]


def _raw_conv_and_context(
    inputs: int, outputs: int, kernel_size: int = 1, **context: Any
) -> nn.Module:
    """Return a plain convolution followed by `Context`, whose arguments are `context`."""
    convolution = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2)
    return nn.Sequential(convolution, Context(outputs, outputs, **context))


def _conv(inputs: int, outputs: int, kernel_size: int = 1) -> nn.Module:
    return ConvNorm(inputs, outputs, kernel_size)


def _separable(inputs: int, outputs: int, kernel_size: int = 3) -> nn.Module:
    return SeparableConv(inputs, outputs, 1, kernel_size)


_LAYER_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "aspp": Context,
    "conv": _conv,
    "isa": InterlacedAttention,
    "rawconv_and_aspp": _raw_conv_and_context,
    "sep_conv": _separable,
}


def _build_layer(inputs: int, outputs: int, description: Mapping[str, Any]) -> nn.Module:
    arguments = {name: argument for name, argument in description.items() if name != "type"}
    return _LAYER_BUILDERS[description["type"]](inputs, outputs, **arguments)


class DAFormerHead(nn.Module):
    """Maps the four stages to features (B, F, H / 4, W / 4), after the dropout before the classifier.

    Args:
        widths: Channels of the stages.
        outputs: F.
        fusion: Description of the layer that fuses the stages.
        last: Description of a layer that embeds the last stage instead of a linear layer. It gives
            context at the last stage only, which is enlarged to the stride of the first stage before.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        outputs: int,
        fusion: Mapping[str, Any] = SEPARABLE_CONTEXT,
        last: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.embed_layers = nn.ModuleList(StageEmbedding(width, outputs) for width in widths)
        self.enlarges_last = last is not None
        if last is not None:
            self.embed_layers[-1] = _build_layer(widths[-1], outputs, last)
        self.fuse_layer = _build_layer(len(widths) * outputs, outputs, fusion)
        self.dropout = nn.Dropout2d(DROPOUT)

    def forward(self, stages: list[Tensor]) -> Tensor:
        if self.enlarges_last:
            enlarged = F.interpolate(
                stages[-1], scale_factor=_LAST_STAGE_SCALE, mode="bilinear", align_corners=False
            )
            stages = [*stages[:-1], enlarged]
        embedded = [layer(stage) for layer, stage in zip(self.embed_layers, stages, strict=True)]
        return self.dropout(self.fuse_layer(concat_stages(embedded)))
