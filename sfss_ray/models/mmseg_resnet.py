"""mmsegmentation's dilated ResNets with two heads: DeepLabV2's (as DAFormer's code has it), DeepLabV3's.

Both read the last stage at stride 8. The stem is the plain one (a 7x7 convolution) or the deep one of
`ResNetV1c` (three 3x3 convolutions). Stages 3 and 4 are dilated by 2 and 4, their first blocks by half.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.models.deeplab_v2 import DILATIONS, FEATURES
from sfss_ray.models.segmenter import Segmenter

DEPTHS = (50, 101)
_POOLED_RATES = (1, 12, 24, 36)
_HEAD_WIDTH = 512


class MmsegResNet(nn.Module):
    """Prepared images (B, 3, H, W) -> features (B, 2048, about H / 8, W / 8)."""

    def __init__(self, depth: int, deep_stem: bool):
        super().__init__()
        from torchvision import models

        build = {50: models.resnet50, 101: models.resnet101}[depth]
        network = build(weights=None, replace_stride_with_dilation=[False, True, True])
        if deep_stem:
            self.stem = _deep_stem()
        else:
            self.conv1, self.bn1 = network.conv1, network.bn1
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images) if hasattr(self, "stem") else F.relu(self.bn1(self.conv1(images)))
        x = F.max_pool2d(x, 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def _deep_stem() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((3, 32, 2), (32, 32, 1), (32, 64, 1)):
        layers += _conv(inputs, outputs, 3, stride=stride)
    return nn.Sequential(*layers)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, rate: int = 1):
    padding = rate * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, rate, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


class _NamedConv(nn.Module):
    """Convolution, BatchNorm, ReLU under mmcv's names `conv` and `bn`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, rate: int = 1):
        super().__init__()
        self.conv, self.bn, self.activate = _conv(inputs, outputs, kernel, rate=rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.bn(self.conv(x)))


class _Pyramid(nn.Module):
    """DeepLabV3's head up to its classifier: pooled image, four rates, one 3x3 over all (512 wide)."""

    def __init__(self):
        super().__init__()
        pooled = _NamedConv(FEATURES, _HEAD_WIDTH, 1)
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), pooled)
        self.aspp_modules = nn.ModuleList(
            _NamedConv(FEATURES, _HEAD_WIDTH, 1 if rate == 1 else 3, rate) for rate in _POOLED_RATES
        )
        self.bottleneck = _NamedConv((1 + len(_POOLED_RATES)) * _HEAD_WIDTH, _HEAD_WIDTH, 3)

    def forward(self, features: Tensor) -> Tensor:
        whole = self.image_pool(features)
        whole = F.interpolate(whole, features.shape[-2:], mode="bilinear", align_corners=False)
        return self.bottleneck(torch.cat([whole, *(m(features) for m in self.aspp_modules)], 1))


class _PyramidBody(nn.Module):
    def __init__(self, depth: int, deep_stem: bool):
        super().__init__()
        self.backbone = MmsegResNet(depth, deep_stem)
        self.decode_head = _Pyramid()

    def forward(self, images: Tensor) -> Tensor:
        return self.decode_head(self.backbone(images))


class _PlainBody(nn.Module):
    def __init__(self, depth: int, deep_stem: bool):
        super().__init__()
        self.backbone = MmsegResNet(depth, deep_stem)

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)


class _SummedConvs(nn.Module):
    """DLV2Head: the sum of four dilated convolutions with bias, named `aspp_modules.N.conv`."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.aspp_modules = nn.ModuleList(
            nn.ModuleDict({"conv": nn.Conv2d(FEATURES, num_classes, 3, 1, rate, rate)})
            for rate in DILATIONS
        )

    def forward(self, features: Tensor) -> Tensor:
        first, *others = (m.get_submodule("conv")(features) for m in self.aspp_modules)
        for logits in others:
            first = first + logits
        return first


def deeplabv2_builder(depth: int, deep_stem: bool) -> Callable[[int], Segmenter]:
    """Builder of DeepLabV2 as DAFormer's code has it."""
    return lambda classes: Segmenter(_PlainBody(depth, deep_stem), _SummedConvs(classes))


def deeplabv3_builder(depth: int, deep_stem: bool) -> Callable[[int], Segmenter]:
    """Builder of mmsegmentation's DeepLabV3."""
    return lambda classes: Segmenter(
        _PyramidBody(depth, deep_stem), nn.Conv2d(_HEAD_WIDTH, classes, 1)
    )


STEMS = {"": False, "_v1c": True}
"""Ending of a network's name -> whether its stem is the deep one."""

MMSEG_RESNETS: dict[str, Callable[[int], Segmenter]] = {
    f"{name}_mmseg_resnet{depth}{ending}": builder(depth, deep)
    for name, builder in (("deeplabv2", deeplabv2_builder), ("deeplabv3", deeplabv3_builder))
    for depth in DEPTHS
    for ending, deep in STEMS.items()
}
