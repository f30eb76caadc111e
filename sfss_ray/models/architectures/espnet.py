"""ESPNet: a small network of pyramids of dilated convolutions.

Source: Mehta et al., ESPNet: Efficient Spatial Pyramid of Dilated Convolutions for Semantic
Segmentation, ECCV 2018. Layers have the names of the authors' checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.errors import ConfigError
from sfss_ray.models.segmenter import Segmenter

_EPS = 1e-3
"""Of all BatchNorm layers; PyTorch's default is 1e-5."""
_DILATIONS = (1, 2, 4, 8, 16)
SIZE_MULTIPLE = 8
"""The grids of three stages, each half of the one before, are joined."""


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class _Named(nn.Module):
    """A convolution under the name `conv`."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, features: Tensor) -> Tensor:
        return self.conv(features)


class _NormAct(nn.Module):
    """BatchNorm and PReLU."""

    def __init__(self, width: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(width, eps=_EPS)
        self.act = nn.PReLU(width)

    def forward(self, features: Tensor) -> Tensor:
        return self.act(self.bn(features))


class _ConvNormAct(_NormAct):
    """A convolution, BatchNorm and PReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1):
        super().__init__(outputs)
        self.conv = _convolution(inputs, outputs, size, stride)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(self.conv(features))


class _Pyramid(nn.Module):
    """Reduce the channels, apply five dilated convolutions, and join them.

    The outputs of dilations 2, 4, 8 and 16 are added up one after the other before they are joined,
    which removes the gridding of large dilations.
    """

    def __init__(self, inputs: int, outputs: int, size: int, stride: int):
        super().__init__()
        width = outputs // 5
        first = outputs - 4 * width
        self.c1 = _Named(_convolution(inputs, width, size, stride))
        for dilation in _DILATIONS:
            branch = first if dilation == 1 else width
            conv = nn.Conv2d(width, branch, 3, padding=dilation, dilation=dilation, bias=False)
            self.add_module(f"d{dilation}", _Named(conv))

    def join(self, features: Tensor) -> Tensor:
        """Return the joined branches (B, outputs, h, w)."""
        reduced = self.c1(features)
        outputs = [self.get_submodule("d1")(reduced)]
        total = None
        for dilation in _DILATIONS[1:]:
            branch = self.get_submodule(f"d{dilation}")(reduced)
            total = branch if total is None else total + branch
            outputs.append(total)
        return torch.cat(outputs, 1)


class _DownSampler(_Pyramid):
    """A pyramid of stride 2."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, size=3, stride=2)
        self.bn = nn.BatchNorm2d(outputs, eps=_EPS)
        self.act = nn.PReLU(outputs)

    def forward(self, features: Tensor) -> Tensor:
        return self.act(self.bn(self.join(features)))


class _Block(_Pyramid):
    """A pyramid at stride 1, residual unless the number of channels changes."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, size=1, stride=1)
        self.bn = _NormAct(outputs)
        self.residual = inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        joined = self.join(features)
        return self.bn(features + joined if self.residual else joined)


def _halve(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, 3, stride=2, padding=1)


class _Encoder(nn.Module):
    """Three stages at strides 2, 4 and 8; the image itself is joined to the first two."""

    def __init__(self, num_classes: int, p: int, q: int):
        super().__init__()
        self.level1 = _ConvNormAct(3, 16, 3, stride=2)
        self.b1 = _NormAct(16 + 3)
        self.level2_0 = _DownSampler(16 + 3, 64)
        self.level2 = nn.ModuleList(_Block(64, 64) for _ in range(p))
        self.b2 = _NormAct(2 * 64 + 3)
        self.level3_0 = _DownSampler(2 * 64 + 3, 128)
        self.level3 = nn.ModuleList(_Block(128, 128) for _ in range(q))
        self.b3 = _NormAct(2 * 128)
        self.classifier = _Named(_convolution(2 * 128, num_classes, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features at stride 2 and 4, and class scores at stride 8."""
        half = _halve(images)
        level1 = self.level1(images)
        first = self.level2_0(self.b1(torch.cat([level1, half], 1)))
        last = first
        for block in self.level2:
            last = block(last)
        level2 = self.b2(torch.cat([last, first, _halve(half)], 1))

        first = last = self.level3_0(level2)
        for block in self.level3:
            last = block(last)
        return level1, level2, self.classifier(self.b3(torch.cat([first, last], 1)))


class EspnetBody(nn.Module):
    """ESPNet up to its last layer: (B, 3, H, W) -> (B, C, H / 2, W / 2).

    Args:
        width: C, the channels of the whole decoder, at least 5.
        p: Blocks of the second stage.
        q: Blocks of the third stage.
    """

    def __init__(self, width: int, p: int, q: int):
        super().__init__()
        self.encoder = _Encoder(width, p, q)
        self.level3_C = _Named(_convolution(2 * 64 + 3, width, 1))
        self.br = nn.BatchNorm2d(width, eps=_EPS)
        self.conv = _ConvNormAct(16 + width, width, 3)
        self.up_l3 = nn.Sequential(_doubling(width, width))
        self.combine_l2_l3 = nn.Sequential(_NormAct(2 * width), _Block(2 * width, width))
        self.up_l2 = nn.Sequential(_doubling(width, width), _NormAct(width))

    def forward(self, images: Tensor) -> Tensor:
        level1, level2, scores = self.encoder(images)
        coarse = self.up_l3(self.br(scores))
        joined = self.combine_l2_l3(torch.cat([self.level3_C(level2), coarse], 1))
        return self.conv(torch.cat([self.up_l2(joined), level1], 1))


def _doubling(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """Return a learnt upsampling by two."""
    return nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)


def espnet_builder(num_classes: int, p: int = 2, q: int = 8, width: int | None = None) -> Segmenter:
    """Build ESPNet. Its logits are twice as fine as its features, which have stride 2.

    Args:
        num_classes: Number of outputs.
        p: Blocks of the second stage.
        q: Blocks of the third stage.
        width: Channels of the decoder; in the published network as many as outputs.

    Raises:
        ConfigError: the decoder has fewer than five channels, one for each dilation.
    """
    width = width or num_classes
    if width < len(_DILATIONS):
        raise ConfigError(f"espnet: width is {width}: allowed is {len(_DILATIONS)} or more")
    network = Segmenter(EspnetBody(width, p, q), _doubling(width, num_classes))
    network.size_multiple = SIZE_MULTIPLE
    return network
