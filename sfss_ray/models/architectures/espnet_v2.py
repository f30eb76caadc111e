"""ESPNetv2 for segmentation: depth-wise dilated pyramids, and a decoder with pyramid pooling.

Source: Mehta et al., ESPNetv2: A Light-weight, Power Efficient, and General Purpose Convolutional
Neural Network, CVPR 2019. Layers have the names of the authors' checkpoints.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.errors import ConfigError
from sfss_ray.models.card import Card
from sfss_ray.models.segmenter import Segmenter

WIDTHS = {
    0.5: (16, 32, 64, 128),
    1.0: (32, 64, 128, 256),
    1.25: (32, 80, 160, 320),
    1.5: (32, 96, 192, 384),
    2.0: (32, 128, 256, 512),
}
"""Scale s of the network -> channels at strides 2, 4, 8 and 16."""
SIZE_MULTIPLE = 16
_BLOCKS = {"level3": 3, "level4": 7}
_BRANCHES = 4
_LIMITS = (13, 11, 9, 7)
"""Largest receptive field of a branch, at the first to the last stage."""
_DECODER = (64, 48, 32)
_ZOOMS = (2.0, 1.5, 1.0, 0.5, 0.1)
_MIN_CELLS = 5
"""Least side of a zoomed feature map."""


class _ConvNorm(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        return self.bn(self.conv(features))


class _ConvNormAct(_ConvNorm):
    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, size, stride, groups)
        self.act = nn.PReLU(outputs)

    def forward(self, features: Tensor) -> Tensor:
        return self.act(super().forward(features))


class _NormAct(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(width)
        self.act = nn.PReLU(width)

    def forward(self, features: Tensor) -> Tensor:
        return self.act(self.bn(features))


class _Depthwise(nn.Module):
    def __init__(self, width: int, dilation: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, dilation, dilation, groups=width, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv(features)


def _dilations(limit: int) -> list[int]:
    """Return the dilations of the branches in rising order.

    Branch i sees 3 + 2i cells, which is a dilation of i + 1; beyond the limit it sees 3.
    """
    fields = [3 + 2 * i for i in range(_BRANCHES)]
    return sorted((field - 1) // 2 if field <= limit else 1 for field in fields)


class _Pyramid(nn.Module):
    """The EESP unit: reduce in groups, dilated depth-wise branches, join, expand in groups."""

    def __init__(self, inputs: int, outputs: int, limit: int, stride: int = 1):
        super().__init__()
        width = outputs // _BRANCHES
        self.proj_1x1 = _ConvNormAct(inputs, width, 1, groups=_BRANCHES)
        self.spp_dw = nn.ModuleList(_Depthwise(width, d, stride) for d in _dilations(limit))
        self.conv_1x1_exp = _ConvNorm(outputs, outputs, 1, groups=_BRANCHES)
        self.br_after_cat = _NormAct(outputs)
        self.module_act = nn.PReLU(outputs)
        self.downsamples = stride == 2

    def forward(self, features: Tensor) -> Tensor:
        reduced = self.proj_1x1(features)
        branches: list[Tensor] = []
        for layer in self.spp_dw:
            branch = layer(reduced)
            branches.append(branch + branches[-1] if branches else branch)
        expanded = self.conv_1x1_exp(self.br_after_cat(torch.cat(branches, 1)))
        if self.downsamples:  # the down-sampler adds to it and activates the sum
            return expanded
        return self.module_act(features + expanded)


class _DownSampler(nn.Module):
    """Halve the grid: pooled features beside a pyramid, plus features of the small image."""

    def __init__(self, inputs: int, outputs: int, limit: int):
        super().__init__()
        self.eesp = _Pyramid(inputs, outputs - inputs, limit, stride=2)
        # Checkpoints have this activation although it is not used here. Data-parallel training would
        # wait for its gradient.
        self.eesp.module_act.requires_grad_(False)
        self.inp_reinf = nn.Sequential(_ConvNormAct(3, 3, 3), _ConvNorm(3, outputs, 1))
        self.act = nn.PReLU(outputs)

    def forward(self, features: Tensor, images: Tensor) -> Tensor:
        """Return features at half the grid of `features`, for images at that smaller grid."""
        halved = torch.cat([_halve(features), self.eesp(features)], 1)
        return self.act(halved + self.inp_reinf(images))


def _halve(features: Tensor) -> Tensor:
    return F.avg_pool2d(features, 3, stride=2, padding=1)


class _Encoder(nn.Module):
    """Four stages at strides 2, 4, 8 and 16."""

    def __init__(self, widths: tuple[int, int, int, int]):
        super().__init__()
        first, second, third, fourth = widths
        self.level1 = _ConvNormAct(3, first, 3, stride=2)
        self.level2_0 = _DownSampler(first, second, _LIMITS[0])
        self.level3_0 = _DownSampler(second, third, _LIMITS[1])
        self.level3 = _blocks("level3", third, _LIMITS[2])
        self.level4_0 = _DownSampler(third, fourth, _LIMITS[2])
        self.level4 = _blocks("level4", fourth, _LIMITS[3])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        level1 = self.level1(images)
        images = _halve(_halve(images))
        level2 = self.level2_0(level1, images)
        images = _halve(images)
        level3 = self.level3(self.level3_0(level2, images))
        level4 = self.level4(self.level4_0(level3, _halve(images)))
        return level1, level2, level3, level4


def _blocks(level: str, width: int, limit: int) -> nn.Sequential:
    return nn.Sequential(*(_Pyramid(width, width, limit) for _ in range(_BLOCKS[level])))


class _Layers(nn.Module):
    """Layers in a row under a name of their own, as the checkpoints have them."""

    def __init__(self, name: str, *layers: nn.Module):
        super().__init__()
        self.name = name
        self.add_module(name, nn.Sequential(*layers))

    def forward(self, features: Tensor) -> Tensor:
        return self.get_submodule(self.name)(features)


def _conv_norm_act(inputs: int, outputs: int, size: int, groups: int = 1) -> _Layers:
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
    return _Layers("cbr", conv, nn.BatchNorm2d(outputs), nn.PReLU(outputs))


def _norm_act(width: int) -> _Layers:
    return _Layers("br", nn.BatchNorm2d(width), nn.PReLU(width))


class PyramidPooling(nn.Module):
    """Depth-wise convolutions of the features at five zooms, merged: (B, inputs, h, w) in and out.

    Args:
        inputs: Channels of the features.
        width: Channels of each zoom.
        outputs: Channels of the result; None leaves out the last layers, and the result has `width`
            channels.
    """

    def __init__(self, inputs: int, width: int, outputs: int | None):
        super().__init__()
        joined = width * len(_ZOOMS)
        self.projection_layer = _conv_norm_act(inputs, width, 1)
        self.stages = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False) for _ in _ZOOMS
        )
        merge: list[nn.Module] = [
            _norm_act(joined),
            nn.ChannelShuffle(len(_ZOOMS)),
            _conv_norm_act(joined, width, 3, groups=width),
        ]
        if outputs is not None:
            merge.append(nn.Conv2d(width, outputs, 1, bias=False))
            self.br = _norm_act(outputs)
        self.merge_layer = nn.Sequential(*merge)
        self.activates = outputs is not None

    def forward(self, features: Tensor) -> Tensor:
        projected = self.projection_layer(features)
        zoomed = [
            _zoomed(projected, layer, z) for layer, z in zip(self.stages, _ZOOMS, strict=True)
        ]
        merged = self.merge_layer(torch.cat(zoomed, 1))
        return self.br(merged) if self.activates else merged


def _zoomed(features: Tensor, layer: nn.Module, zoom: float) -> Tensor:
    """Apply a layer to zoomed features, and return the result at their own grid."""
    height, width = features.shape[-2:]
    size = (max(_MIN_CELLS, math.ceil(height * zoom)), max(_MIN_CELLS, math.ceil(width * zoom)))
    if zoom > 1:
        enlarged = F.interpolate(features, size, mode="bilinear", align_corners=True)
        return F.adaptive_avg_pool2d(layer(enlarged), (height, width))
    if zoom < 1:
        reduced = layer(F.adaptive_avg_pool2d(features, size))
        return F.interpolate(reduced, (height, width), mode="bilinear", align_corners=True)
    return layer(features)


class _Gate(nn.Module):
    """Features of the encoder, expanded and weighted by a gate from their mean."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        gate = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.wt_layer = nn.Sequential(nn.AdaptiveAvgPool2d(1), gate, nn.Sigmoid())
        self.expansion_layer = _conv_norm_act(inputs, outputs, 3, math.gcd(inputs, outputs))

    def forward(self, features: Tensor) -> Tensor:
        return self.expansion_layer(features) * self.wt_layer(features)


def _activation(width: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(width), nn.PReLU(width))


class EspnetV2Body(nn.Module):
    """ESPNetv2 up to its classifier: (B, 3, H, W) -> (B, F, H / 2, W / 2).

    Args:
        widths: Channels at strides 2, 4, 8 and 16.
        pool_width: F, the channels of each zoom in the pooling pyramids.
    """

    def __init__(self, widths: tuple[int, int, int, int], pool_width: int):
        super().__init__()
        self.base_net = _Encoder(widths)
        first, second, third, fourth = widths
        coarse, middle, fine = _DECODER
        self.bu_dec_l1 = PyramidPooling(fourth, pool_width, coarse)
        self.bu_dec_l2 = PyramidPooling(coarse, pool_width, middle)
        self.bu_dec_l3 = PyramidPooling(middle, pool_width, fine)
        self.bu_dec_l4 = PyramidPooling(fine, pool_width, None)
        self.merge_enc_dec_l2 = _Gate(third, coarse)
        self.merge_enc_dec_l3 = _Gate(second, middle)
        self.merge_enc_dec_l4 = _Gate(first, fine)
        self.bu_br_l2 = _activation(coarse)
        self.bu_br_l3 = _activation(middle)
        self.bu_br_l4 = _activation(fine)

    def forward(self, images: Tensor) -> Tensor:
        level1, level2, level3, level4 = self.base_net(images)
        decoded = _doubled(self.bu_dec_l1(level4))
        decoded = self.bu_br_l2(self.merge_enc_dec_l2(level3) + decoded)
        decoded = _doubled(self.bu_dec_l2(decoded))
        decoded = self.bu_br_l3(self.merge_enc_dec_l3(level2) + decoded)
        decoded = _doubled(self.bu_dec_l3(decoded))
        return self.bu_dec_l4(self.bu_br_l4(self.merge_enc_dec_l4(level1) + decoded))


def _doubled(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=True)


def espnet_v2_builder(
    num_classes: int, scale: float = 1.0, pool_width: int | None = None
) -> Segmenter:
    """Build ESPNetv2. Features and logits have stride 2.

    Args:
        num_classes: Number of outputs.
        scale: Width of the network, a key of WIDTHS.
        pool_width: Channels of each zoom in the decoder's pyramids; in the published network half as
            many as outputs, 16 at most.

    Raises:
        ConfigError: there is no network of this scale.
    """
    if scale not in WIDTHS:
        scales = ", ".join(map(str, WIDTHS))
        raise ConfigError(f"espnet_v2: scale is {scale}: allowed is {scales}")
    pool_width = pool_width or max(1, min(num_classes // 2, 16))
    body = EspnetV2Body(WIDTHS[scale], pool_width)
    network = Segmenter(body, nn.Conv2d(pool_width, num_classes, 1), Card(align_corners=True))
    network.size_multiple = SIZE_MULTIPLE
    return network
