"""Networks of torchvision, cut into the body that makes features and the classifier that reads them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.models.segmenter import Segmenter


class _Body(nn.Module):
    """Backbone and the head up to its last convolution, under torchvision's own names."""

    def __init__(self, network: nn.Module, head: nn.Sequential):
        super().__init__()
        self.backbone = network.get_submodule("backbone")
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images)["out"])


def deeplab_or_fcn(builder_name: str) -> Callable[[int], Segmenter]:
    """Builder of a DeepLabV3 or FCN: their heads end in one convolution."""

    def build(num_classes: int) -> Segmenter:
        network = _bare(builder_name, num_classes)
        layers = list(network.get_submodule("classifier").children())
        return Segmenter(_Body(network, nn.Sequential(*layers[:-1])), layers[-1])

    return build


class _LrasppBody(nn.Module):
    """LR-ASPP up to its two classifiers: features are [high (128), low (40)] at stride 8."""

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
    """LR-ASPP MobileNetV3.

    Its logits are the sum of a 1x1 convolution of the high features and one of the low: that is one
    convolution of both side by side, which is the classifier here.
    """
    network = _bare("lraspp_mobilenet_v3_large", num_classes)
    head = network.get_submodule("classifier")
    high, low = head.get_submodule("high_classifier"), head.get_submodule("low_classifier")
    assert isinstance(high, nn.Conv2d)
    assert isinstance(low, nn.Conv2d)
    classifier = nn.Conv2d(high.in_channels + low.in_channels, num_classes, 1)
    return Segmenter(_LrasppBody(network), classifier)


def _bare(builder_name: str, num_classes: int) -> nn.Module:
    from torchvision.models import segmentation  # costs a second that other networks save

    builder = getattr(segmentation, builder_name)
    return builder(weights=None, weights_backbone=None, num_classes=num_classes)
