"""DeepLabV2 with ResNet-101 (Chen et al., arXiv 1606.00915), as the field of domain adaptation runs it.

Two bodies wear the same parameter shapes and differ in what they compute, so that weights of one give
nonsense in the other:

- the `caffe` body (AdaptSegNet, ADVENT, HCL, IAPC, CROTS): the stride stands in a block's first 1x1
  convolution, all blocks of a stage share its dilation, the first pooling rounds sizes up;
- the `torchvision` body (FADA, DT-ST, TRSFUDA): the stride stands in the 3x3 convolution, the first
  block of a dilated stage keeps the dilation of the stage before, pooling rounds down.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sfss_ray.models.segmenter import Segmenter

DILATIONS = (6, 12, 18, 24)
FEATURES = 2048


class _Bottleneck(nn.Module):
    """1x1 (with the stride) -> 3x3 dilated -> 1x1, added to its input."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, resized: bool):
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
        if resized:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def _stage(inputs: int, width: int, blocks: int, stride: int, dilation: int) -> nn.Sequential:
    first = _Bottleneck(inputs, width, stride, dilation, resized=True)
    rest = [_Bottleneck(4 * width, width, 1, dilation, resized=False) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


class CaffeResNet101(nn.Module):
    """Prepared images (B, 3, H, W) -> features (B, 2048, about H / 8, W / 8)."""

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
    """The same from torchvision's ResNet with the strides of layer3 and layer4 turned to dilation."""

    def __init__(self):
        super().__init__()
        from torchvision.models import resnet101
        from torchvision.models._utils import IntermediateLayerGetter

        backbone = resnet101(weights=None, replace_stride_with_dilation=[False, True, True])
        self.backbone = IntermediateLayerGetter(backbone, {"layer4": "out"})

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)["out"]


class AtrousClassifier(nn.Module):
    """Sum of 3x3 convolutions of one feature map, by default four dilated by 6, 12, 18 and 24."""

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
        first, *others = self.conv2d_list
        logits = first(features)
        for layer in others:
            logits = logits + layer(features)
        return logits


CAFFE_MEAN = (104.00698793, 116.66876762, 122.67891434)
"""Blue, green, red; of pixels 0 to 255."""


def deeplabv2(num_classes: int) -> Segmenter:
    """DeepLabV2 with the `caffe` body: BGR images of 0 to 255 less their mean."""
    return Segmenter(
        CaffeResNet101(),
        AtrousClassifier(num_classes),
        mean=CAFFE_MEAN,
        std=(1.0, 1.0, 1.0),
        channel_order="bgr",
        value_range=255.0,
        align_corners=True,
    )


def deeplabv2_torchvision(num_classes: int) -> Segmenter:
    """DeepLabV2 with the `torchvision` body: RGB images in ImageNet's normalisation."""
    return Segmenter(TorchvisionResNet101(), AtrousClassifier(num_classes), align_corners=True)
