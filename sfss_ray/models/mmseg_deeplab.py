"""DeepLab V2, V3 and V3+ on ResNets as mmsegmentation builds them, under its parameter names.

The backbone is that of its configurations at output stride 8 (`d8`): strides 1, 2, 1, 1, dilations 1, 1,
2, 4 with the first block of a stage at the dilation of the stage before, the stride in the 3x3
convolution. `v1c` has three 3x3 convolutions where the plain one begins with a 7x7.

Facts from the public code of mmsegmentation and of DAFormer (its DLV2Head).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.models.deeplab_v2 import FEATURES, AtrousClassifier
from sfss_ray.models.mit_heads import DROPOUT, ConvNorm, SeparableConv
from sfss_ray.models.segmenter import Segmenter

DILATIONS = (1, 12, 24, 36)
FUSED = 512
_FIRST_STAGE = 256
_REDUCED = 48


class DilatedResNet(nn.Module):
    """Prepared images (B, 3, H, W) -> stages of 256, 512, 1024, 2048 channels at stride 4, 8, 8, 8."""

    def __init__(self, depth: int, deep_stem: bool):
        super().__init__()
        from torchvision.models import resnet50, resnet101

        build = {50: resnet50, 101: resnet101}[depth]
        whole = build(weights=None, replace_stride_with_dilation=[False, True, True])
        self.stem: nn.Module | None = None
        if deep_stem:
            self.stem = nn.Sequential(*_three(3, 32, 2), *_three(32, 32, 1), *_three(32, 64, 1))
        else:
            self.conv1, self.bn1 = whole.conv1, whole.bn1
        self.maxpool = whole.maxpool
        self.layer1, self.layer2 = whole.layer1, whole.layer2
        self.layer3, self.layer4 = whole.layer3, whole.layer4

    def forward(self, images: Tensor) -> list[Tensor]:
        x = torch.relu(self.bn1(self.conv1(images))) if self.stem is None else self.stem(images)
        x = self.maxpool(x)
        stages = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            stages.append(x)
        return stages


def _three(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class LastStage(nn.Module):
    """The backbone's last stage alone: what DeepLabV2's classifier reads."""

    def __init__(self, backbone: DilatedResNet):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)[-1]


class ContextHead(nn.Module):
    """DeepLabV3: the mean of the image and four dilations side by side, then a 3x3."""

    def __init__(self):
        super().__init__()
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNorm(FEATURES, FUSED, 1))
        self.aspp_modules = nn.ModuleList(
            ConvNorm(FEATURES, FUSED, 1 if d == 1 else 3, d) for d in DILATIONS
        )
        self.bottleneck: nn.Module = ConvNorm((len(DILATIONS) + 1) * FUSED, FUSED, 3)
        self.dropout = nn.Dropout2d(DROPOUT)

    def forward(self, stages: list[Tensor]) -> Tensor:
        return self.dropout(self.context(stages[-1]))

    def context(self, x: Tensor) -> Tensor:
        """(B, 512, h, w) of the last stage."""
        mean = self.image_pool(x).expand(-1, -1, *x.shape[-2:])
        return self.bottleneck(torch.cat([mean, *[layer(x) for layer in self.aspp_modules]], 1))


class SeparableContextHead(ContextHead):
    """DeepLabV3+: separable convolutions, and the first stage's detail beside the context."""

    def __init__(self):
        super().__init__()
        for i, dilation in enumerate(DILATIONS):
            if dilation > 1:
                self.aspp_modules[i] = SeparableConv(FEATURES, FUSED, dilation)
        self.bottleneck = SeparableConv((len(DILATIONS) + 1) * FUSED, FUSED, 1)
        self.c1_bottleneck = ConvNorm(_FIRST_STAGE, _REDUCED, 1)
        self.sep_bottleneck = nn.Sequential(
            SeparableConv(FUSED + _REDUCED, FUSED, 1), SeparableConv(FUSED, FUSED, 1)
        )

    def forward(self, stages: list[Tensor]) -> Tensor:
        detail = self.c1_bottleneck(stages[0])
        context = F.interpolate(
            self.context(stages[-1]), size=detail.shape[-2:], mode="bilinear", align_corners=False
        )
        return self.dropout(self.sep_bottleneck(torch.cat([context, detail], 1)))


class HeadBody(nn.Module):
    """Backbone and decode head up to its last convolution."""

    def __init__(self, backbone: DilatedResNet, decode_head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.decode_head = decode_head

    def forward(self, images: Tensor) -> Tensor:
        return self.decode_head(self.backbone(images))


def mmseg_deeplab_builders() -> dict[str, Callable[[int], Segmenter]]:
    """The networks by name: head, depth, stem."""
    return {
        f"{head}_mmseg_resnet{depth}{stem}": _builder(head, depth, stem == "_v1c")
        for head in ("deeplabv2", "deeplabv3", "deeplabv3plus")
        for depth in (50, 101)
        for stem in ("", "_v1c")
    }


def _builder(head: str, depth: int, deep_stem: bool) -> Callable[[int], Segmenter]:
    def build(num_classes: int) -> Segmenter:
        backbone = DilatedResNet(depth, deep_stem)
        if head == "deeplabv2":
            return Segmenter(LastStage(backbone), AtrousClassifier(num_classes))
        decode_head = ContextHead() if head == "deeplabv3" else SeparableContextHead()
        return Segmenter(HeadBody(backbone, decode_head), nn.Conv2d(FUSED, num_classes, 1))

    return build
