"""Segmentation networks of torchvision, split into a body and a classifier."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.models.segmenter import Segmenter


class _Body(nn.Module):
    """The backbone and the head up to its last convolution, with torchvision's parameter names."""

    def __init__(self, network: nn.Module, head: nn.Sequential):
        super().__init__()
        self.backbone = network.get_submodule("backbone")
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images)["out"])


def deeplab_or_fcn(builder_name: str) -> Callable[[int], Segmenter]:
    """Return the builder of a DeepLabV3 or FCN, whose heads end in a single convolution.

    Args:
        builder_name: A function of torchvision.models.segmentation.
    """

    def build(num_classes: int) -> Segmenter:
        network = _random_network(builder_name, num_classes)
        layers = list(network.get_submodule("classifier").children())
        return Segmenter(_Body(network, nn.Sequential(*layers[:-1])), layers[-1])

    return build


class _LrasppBody(nn.Module):
    """LR-ASPP up to its two classifiers.

    Features at stride 8 are 128 channels of high level and 40 of low level, concatenated.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        head = network.get_submodule("classifier")
        self.backbone = network.get_submodule("backbone")
        self.cbr = head.get_submodule("cbr")
        self.scale = head.get_submodule("scale")

    def forward(self, images: Tensor) -> Tensor:
        maps = self.backbone(images)
        low, high = maps["low"], maps["high"]
        gated = self.cbr(high) * self.scale(high)
        gated = F.interpolate(gated, size=low.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([gated, low], 1)


def lraspp(num_classes: int) -> Segmenter:
    """Build LR-ASPP on MobileNetV3.

    torchvision adds the logits of one 1x1 convolution of the high-level features and another of the
    low-level ones. That equals a single convolution of the concatenated features, the classifier here.
    """
    network = _random_network("lraspp_mobilenet_v3_large", num_classes)
    head = network.get_submodule("classifier")
    high, low = head.get_submodule("high_classifier"), head.get_submodule("low_classifier")
    assert isinstance(high, nn.Conv2d)
    assert isinstance(low, nn.Conv2d)
    classifier = nn.Conv2d(high.in_channels + low.in_channels, num_classes, 1)
    return Segmenter(_LrasppBody(network), classifier)


def _random_network(builder_name: str, num_classes: int) -> nn.Module:
    from torchvision.models import segmentation  # takes a second, which other networks save

    builder = getattr(segmentation, builder_name)
    return builder(weights=None, weights_backbone=None, num_classes=num_classes)
