"""DeepLab V2, V3 and V3+ on ResNets as mmsegmentation builds them, under its parameter names.

Without options the backbone is that of its configurations at output stride 8 (`d8`): strides 1, 2, 1, 1,
dilations 1, 1, 2, 4 with the first block of a stage at half its dilation, the stride in the 3x3
convolution. `v1c` has three 3x3 convolutions where the plain one begins with a 7x7.

Facts from the public code of mmsegmentation and of DAFormer (its DLV2Head).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.models.architectures.deeplab_v2 import DILATIONS as DILATIONS_V2
from sfss_ray.models.architectures.deeplab_v2 import FEATURES, AtrousClassifier
from sfss_ray.models.architectures.mit_heads import DROPOUT, ConvNorm, SeparableConv
from sfss_ray.models.segmenter import ResizingHead, Segmenter

STRIDES = (1, 2, 1, 1)
DILATIONS = (1, 1, 2, 4)
HEAD_DILATIONS = {
    "deeplabv2": DILATIONS_V2,
    "deeplabv3": (1, 12, 24, 36),
    "deeplabv3plus": (1, 12, 24, 36),
}
FUSED = 512
_FIRST_STAGE = 256
_REDUCED = 48


class DilatedResNet(nn.Module):
    """Prepared images (B, 3, H, W) -> the stages of 256, 512, 1024 and 2048 channels.

    Args:
        depth: 50 or 101.
        deep_stem: Three 3x3 convolutions in front (v1c).
        strides: Of the first block of each stage.
        dilations: Of the 3x3 convolutions of each stage.
        contract_dilation: Whether the first block of a dilated stage has half its dilation.
        multi_grid: Dilations of the last stage's blocks, in place of all that.
        style: Where a block has its stride: in the 3x3 (pytorch) or in the first 1x1 (caffe).
    """

    def __init__(
        self,
        depth: int,
        deep_stem: bool,
        strides: Sequence[int] = STRIDES,
        dilations: Sequence[int] = DILATIONS,
        contract_dilation: bool = True,
        multi_grid: Sequence[int] | None = None,
        style: Literal["pytorch", "caffe"] = "pytorch",
    ):
        super().__init__()
        from torchvision.models import resnet50, resnet101

        whole = {50: resnet50, 101: resnet101}[depth](weights=None)
        self.stem: nn.Module | None = None
        if deep_stem:
            self.stem = nn.Sequential(*_three(3, 32, 2), *_three(32, 32, 1), *_three(32, 64, 1))
        else:
            self.conv1, self.bn1 = whole.conv1, whole.bn1
        self.maxpool = whole.maxpool
        self.layer1, self.layer2 = whole.layer1, whole.layer2
        self.layer3, self.layer4 = whole.layer3, whole.layer4
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        for stage, stride, dilation in zip(stages, strides, dilations, strict=True):
            first = dilation // 2 if contract_dilation and dilation > 1 else dilation
            rates = [first] + [dilation] * (len(stage) - 1)
            if multi_grid is not None and stage is self.layer4:
                rates = list(multi_grid)
            _set_grid(stage, stride, rates, style)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = torch.relu(self.bn1(self.conv1(images))) if self.stem is None else self.stem(images)
        x = self.maxpool(x)
        stages = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            stages.append(x)
        return stages


def _set_grid(stage: nn.Sequential, stride: int, rates: Sequence[int], style: str) -> None:
    """Give torchvision's bottlenecks another stride and other dilations."""
    for i, (block, rate) in enumerate(zip(stage, rates, strict=True)):
        convolutions: Any = block  # Bottleneck, whose attributes are typed as modules
        step = stride if i == 0 else 1
        strided, other = convolutions.conv2, convolutions.conv1
        if style == "caffe":
            strided, other = other, strided
        strided.stride, other.stride = (step, step), (1, 1)
        convolutions.conv2.dilation = convolutions.conv2.padding = (rate, rate)
        if convolutions.downsample is not None:
            convolutions.downsample[0].stride = (step, step)


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


class ContextHead(ResizingHead):
    """DeepLabV3: the mean of the image and dilated convolutions side by side, then a 3x3."""

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
        """(B, 512, h, w) of the last stage."""
        mean = self.image_pool(x).expand(-1, -1, *x.shape[-2:])
        return self.bottleneck(torch.cat([mean, *[layer(x) for layer in self.aspp_modules]], 1))


class SeparableContextHead(ContextHead):
    """DeepLabV3+: separable dilated convolutions, and the first stage's detail beside the context."""

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
    """Backbone and decode head up to its last convolution."""

    def __init__(self, backbone: DilatedResNet, decode_head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.decode_head = decode_head

    def forward(self, images: Tensor) -> Tensor:
        return self.decode_head(self.backbone(images))


def mmseg_deeplab_builders() -> dict[str, Callable[..., Segmenter]]:
    """The networks by name: head, depth, stem."""
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
        resnet = DilatedResNet(depth, deep_stem, **(backbone or {}))
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
        resnet = DilatedResNet(depth, deep_stem, **(backbone or {}))
        decode_head = SeparableContextHead(head_dilations, separable_bottleneck)
        return Segmenter(HeadBody(resnet, decode_head), nn.Conv2d(FUSED, num_classes, 1))

    return build_v3plus if head == "deeplabv3plus" else build
