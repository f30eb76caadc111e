"""DeepLab V2, V3 and V3+ on ResNets as mmsegmentation builds them, with its parameter names.

Without options, the backbone is that of mmsegmentation's configurations with output stride 8 (`d8`). A
stem of type `v1c` has three 3x3 convolutions instead of one 7x7.

Sources: the public code of mmsegmentation, and of DAFormer for its DLV2Head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.models.architectures.deeplab_v2 import DILATIONS as DILATIONS_V2
from sfss_ray.models.architectures.deeplab_v2 import FEATURES, AtrousClassifier
from sfss_ray.models.architectures.mit_heads import DROPOUT, ConvNorm, SeparableConv
from sfss_ray.models.segmenter import ResizingHead, Segmenter

HEAD_DILATIONS = {
    "deeplabv2": DILATIONS_V2,
    "deeplabv3": (1, 12, 24, 36),
    "deeplabv3plus": (1, 12, 24, 36),
}
"""Dilations of each head's branches at output stride 8."""
FUSED = 512
"""Channels of each branch of a head, and of its features."""
_FIRST_STAGE = 256
_REDUCED = 48


@dataclass(frozen=True)
class BackboneOptions:
    """Strides and dilations of a ResNet. The defaults give output stride 8."""

    strides: Sequence[int] = (1, 2, 1, 1)
    """Stride of the first block of each stage."""
    dilations: Sequence[int] = (1, 1, 2, 4)
    """Dilation of the 3x3 convolutions of each stage."""
    contract_dilation: bool = True
    """Whether the first block of a dilated stage has half the stage's dilation."""
    multi_grid: Sequence[int] | None = None
    """Dilations of the last stage's blocks, instead of the above."""
    style: Literal["pytorch", "caffe"] = "pytorch"
    """Which convolution of a block has the stride: the 3x3 (pytorch) or the first 1x1 (caffe)."""

    def __post_init__(self):
        if len(self.strides) != 4 or len(self.dilations) != 4:
            raise ValueError("a ResNet has four stages: give four strides and four dilations")

    def block_dilations(self, stage: int, blocks: int) -> list[int]:
        """Return the dilation of each block of a stage, which is counted from 0."""
        if self.multi_grid is not None and stage == 3:
            return list(self.multi_grid)
        dilation = self.dilations[stage]
        contracts = self.contract_dilation and dilation > 1
        return [dilation // 2 if contracts else dilation] + [dilation] * (blocks - 1)


class DilatedResNet(nn.Module):
    """Maps prepared images (B, 3, H, W) to the four stages, of 256, 512, 1024 and 2048 channels.

    Args:
        depth: 50 or 101.
        deep_stem: Whether the stem has three 3x3 convolutions (v1c) instead of one 7x7.
        options: Strides and dilations.
    """

    def __init__(self, depth: int, deep_stem: bool, options: BackboneOptions = BackboneOptions()):
        super().__init__()
        from torchvision.models import resnet50, resnet101

        resnet = {50: resnet50, 101: resnet101}[depth](weights=None)
        self.stem: nn.Module | None = None
        if deep_stem:
            self.stem = nn.Sequential(
                *_conv3x3(3, 32, 2), *_conv3x3(32, 32, 1), *_conv3x3(32, 64, 1)
            )
        else:
            self.conv1, self.bn1 = resnet.conv1, resnet.bn1
        self.maxpool = resnet.maxpool
        self.layer1, self.layer2 = resnet.layer1, resnet.layer2
        self.layer3, self.layer4 = resnet.layer3, resnet.layer4
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        for i, (stage, stride) in enumerate(zip(stages, options.strides, strict=True)):
            dilations = options.block_dilations(i, len(stage))
            _set_strides_and_dilations(stage, stride, dilations, options.style)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = torch.relu(self.bn1(self.conv1(images))) if self.stem is None else self.stem(images)
        x = self.maxpool(x)
        stages = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            stages.append(x)
        return stages


def _set_strides_and_dilations(
    stage: nn.Sequential, stride: int, dilations: Sequence[int], style: str
) -> None:
    """Change the strides and dilations of torchvision's bottlenecks in place."""
    for i, (block, dilation) in enumerate(zip(stage, dilations, strict=True)):
        bottleneck: Any = block  # torchvision's Bottleneck, whose attributes are typed as modules
        block_stride = stride if i == 0 else 1
        strided, unstrided = bottleneck.conv2, bottleneck.conv1
        if style == "caffe":
            strided, unstrided = unstrided, strided
        strided.stride, unstrided.stride = (block_stride, block_stride), (1, 1)
        bottleneck.conv2.dilation = bottleneck.conv2.padding = (dilation, dilation)
        if bottleneck.downsample is not None:
            bottleneck.downsample[0].stride = (block_stride, block_stride)


def _conv3x3(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class LastStage(nn.Module):
    """A backbone that returns only its last stage, the input of DeepLabV2's classifier."""

    def __init__(self, backbone: DilatedResNet):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)[-1]


class ContextHead(ResizingHead):
    """DeepLabV3's head: the image's mean and parallel dilated convolutions, then a 3x3 convolution."""

    def __init__(self, dilations: Sequence[int]):
        super().__init__()
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNorm(FEATURES, FUSED, 1))
        self.aspp_modules = nn.ModuleList(
            ConvNorm(FEATURES, FUSED, 1 if d == 1 else 3, d) for d in dilations
        )
        self.bottleneck: nn.Module = ConvNorm((len(dilations) + 1) * FUSED, FUSED, 3)
        self.dropout = nn.Dropout2d(DROPOUT)

    def forward(self, stages: list[Tensor]) -> Tensor:
        return self.dropout(self.context(stages[-1]))

    def context(self, x: Tensor) -> Tensor:
        """Return features (B, 512, h, w) of the last stage."""
        mean = self.image_pool(x).expand(-1, -1, *x.shape[-2:])
        return self.bottleneck(torch.cat([mean, *[layer(x) for layer in self.aspp_modules]], 1))


class SeparableContextHead(ContextHead):
    """DeepLabV3+'s head: separable dilated convolutions, combined with the detail of the first stage."""

    def __init__(self, dilations: Sequence[int], separable_bottleneck: bool = False):
        super().__init__(dilations)
        for i, dilation in enumerate(dilations):
            if dilation > 1:
                self.aspp_modules[i] = SeparableConv(FEATURES, FUSED, dilation)
        if separable_bottleneck:
            self.bottleneck = SeparableConv((len(dilations) + 1) * FUSED, FUSED, 1)
        self.c1_bottleneck = ConvNorm(_FIRST_STAGE, _REDUCED, 1)
        self.sep_bottleneck = nn.Sequential(
            SeparableConv(FUSED + _REDUCED, FUSED, 1), SeparableConv(FUSED, FUSED, 1)
        )

    def forward(self, stages: list[Tensor]) -> Tensor:
        detail = self.c1_bottleneck(stages[0])
        context = F.interpolate(
            self.context(stages[-1]),
            size=detail.shape[-2:],
            mode="bilinear",
            align_corners=self.align_corners,
        )
        return self.dropout(self.sep_bottleneck(torch.cat([context, detail], 1)))


class HeadBody(nn.Module):
    """A backbone and a decode head up to its last convolution."""

    def __init__(self, backbone: DilatedResNet, decode_head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.decode_head = decode_head

    def forward(self, images: Tensor) -> Tensor:
        return self.decode_head(self.backbone(images))


def mmseg_deeplab_builders() -> dict[str, Callable[..., Segmenter]]:
    """Return the builders of all networks by name: head, depth, stem."""
    return {
        f"{head}_mmseg_resnet{depth}{stem}": _builder(head, depth, stem == "_v1c")
        for head in HEAD_DILATIONS
        for depth in (50, 101)
        for stem in ("", "_v1c")
    }


def _builder(head: str, depth: int, deep_stem: bool) -> Callable[..., Segmenter]:
    def build(
        num_classes: int,
        backbone: dict[str, Any] | None = None,
        head_dilations: Sequence[int] = HEAD_DILATIONS[head],
    ) -> Segmenter:
        resnet = DilatedResNet(depth, deep_stem, BackboneOptions(**(backbone or {})))
        if head == "deeplabv2":
            classifier = AtrousClassifier(num_classes, dilations=head_dilations)
            return Segmenter(LastStage(resnet), classifier)
        body = HeadBody(resnet, ContextHead(head_dilations))
        return Segmenter(body, nn.Conv2d(FUSED, num_classes, 1))

    def build_v3plus(
        num_classes: int,
        backbone: dict[str, Any] | None = None,
        head_dilations: Sequence[int] = HEAD_DILATIONS["deeplabv3plus"],
        separable_bottleneck: bool = False,
    ) -> Segmenter:
        resnet = DilatedResNet(depth, deep_stem, BackboneOptions(**(backbone or {})))
        decode_head = SeparableContextHead(head_dilations, separable_bottleneck)
        return Segmenter(HeadBody(resnet, decode_head), nn.Conv2d(FUSED, num_classes, 1))

    return build_v3plus if head == "deeplabv3plus" else build
