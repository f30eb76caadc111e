"""DeepLabV2 on ResNet-101 (Chen et al., arXiv 1606.00915), in the two variants of domain adaptation.

The two bodies have the same parameter shapes but compute different functions. Weights of one give
nonsense in the other.

- The `caffe` body (AdaptSegNet, ADVENT, HCL, IAPC, CROTS) has the stride in a block's first 1x1
  convolution. All blocks of a stage share its dilation, and the first pooling rounds sizes up.
- The `torchvision` body (FADA, DT-ST, TRSFUDA) has the stride in the 3x3 convolution. The first block
  of a dilated stage has the dilation of the previous stage, and pooling rounds sizes down.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sfss_ray.models.card import Card
from sfss_ray.models.segmenter import Segmenter

DILATIONS = (6, 12, 18, 24)
FEATURES = 2048
"""Channels of the last stage."""
CAFFE_CARD = Card(
    mean=(104.00698793, 116.66876762, 122.67891434),
    std=(1.0, 1.0, 1.0),
    channel_order="bgr",
    value_range=255.0,
    align_corners=True,
)
"""The preprocessing of the `caffe` body: BGR pixels of 0 to 255 minus their mean."""


class _Bottleneck(nn.Module):
    """A 1x1 convolution with the stride, a dilated 3x3 and a 1x1, added to the input."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, has_downsample: bool):
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if has_downsample:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def _stage(inputs: int, width: int, blocks: int, stride: int, dilation: int) -> nn.Sequential:
    return nn.Sequential(
        _Bottleneck(inputs, width, stride, dilation, has_downsample=True),
        *[
            _Bottleneck(4 * width, width, 1, dilation, has_downsample=False)
            for _ in range(blocks - 1)
        ],
    )


class CaffeResNet101(nn.Module):
    """Maps prepared images (B, 3, H, W) to features (B, 2048, h, w) at stride 8, rounding sizes up."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.layer1 = _stage(64, 64, 3, 1, 1)
        self.layer2 = _stage(256, 128, 4, 2, 1)
        self.layer3 = _stage(512, 256, 23, 1, 2)
        self.layer4 = _stage(1024, 512, 3, 1, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class TorchvisionResNet101(nn.Module):
    """Maps prepared images to features (B, 2048, h, w) at stride 8 with torchvision's dilated ResNet."""

    def __init__(self):
        super().__init__()
        from torchvision.models import resnet101
        from torchvision.models._utils import IntermediateLayerGetter

        backbone = resnet101(weights=None, replace_stride_with_dilation=[False, True, True])
        self.backbone = IntermediateLayerGetter(backbone, {"layer4": "out"})

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)["out"]


class AtrousClassifier(nn.Module):
    """The sum of dilated 3x3 convolutions, by default with dilations 6, 12, 18 and 24."""

    def __init__(
        self, num_classes: int, inputs: int = FEATURES, dilations: Sequence[int] = DILATIONS
    ):
        super().__init__()
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(inputs, num_classes, 3, 1, dilation, dilation) for dilation in dilations
        )
        for layer in self.conv2d_list:
            assert isinstance(layer, nn.Conv2d)
            nn.init.normal_(layer.weight, 0, 0.01)

    def forward(self, features: Tensor) -> Tensor:
        first_layer, *other_layers = self.conv2d_list
        logits = first_layer(features)
        for layer in other_layers:
            logits = logits + layer(features)
        return logits


def deeplabv2(num_classes: int) -> Segmenter:
    """Build DeepLabV2 with the `caffe` body, for BGR pixels of 0 to 255 minus their mean."""
    return Segmenter(CaffeResNet101(), AtrousClassifier(num_classes), CAFFE_CARD)


def deeplabv2_torchvision(num_classes: int) -> Segmenter:
    """Build DeepLabV2 with the `torchvision` body, for RGB images with ImageNet's normalisation."""
    card = Card(align_corners=True)
    return Segmenter(TorchvisionResNet101(), AtrousClassifier(num_classes), card)
