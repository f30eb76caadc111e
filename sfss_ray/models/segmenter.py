"""What every network looks like to the rest: RGB in [0, 1] in, features and logits out."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.data.class_sets import ClassSet
from sfss_ray.models.card import IMAGENET_MEAN, IMAGENET_STD, Card, ChannelOrder, Triple
from sfss_ray.models.user_code.layers import named_layers

if TYPE_CHECKING:
    from sfss_ray.models.load_report import LoadReport


class SegmenterOutput(NamedTuple):
    """Both on the grid of the classifier: features (B, F, h, w), logits (B, C, h, w)."""

    features: Tensor
    logits: Tensor


class ResizingHead(nn.Module):
    """A decode head that resizes maps inside, by the corner rule that the logits are scaled up with."""

    align_corners = False


class Segmenter(nn.Module):
    """A body that makes features, a classifier that reads them, and what the images need before.

    Args:
        body: (B, 3, H, W) normalised images -> features (B, F, h, w).
        classifier: features -> logits (B, C, h, w) on the same grid.
        mean, std, channel_order, value_range, align_corners: see `Card`; `use_card` changes them.

    Attributes:
        name: Its key in NETWORKS, or `custom`; like the next three set by the `SourceModel` it is in.
        classes: What its outputs mean; None for a network that never was in a source model.
        facts: Who made it, from what.
        load_report: How the file it was read from fitted it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        classifier: nn.Module,
        mean: Triple = IMAGENET_MEAN,
        std: Triple = IMAGENET_STD,
        channel_order: ChannelOrder = "rgb",
        value_range: float = 1.0,
        align_corners: bool = False,
    ):
        super().__init__()
        self.name = ""
        self.classes: ClassSet | None = None
        self.facts: dict[str, Any] = {}
        self.load_report: LoadReport | None = None
        self.options: dict[str, Any] = {}
        """Those it was built with, see `build_network`."""
        self.body = body
        self.classifier = classifier
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(1, 3, 1, 1), persistent=False)
        self.use_card(Card(mean, std, channel_order, value_range, align_corners))

    def use_card(self, card: Card) -> Segmenter:
        """Prepare images, and scale logits up, as the card says; returns itself."""
        self.mean.copy_(torch.tensor(card.mean).view(1, 3, 1, 1))
        self.std.copy_(torch.tensor(card.std).view(1, 3, 1, 1))
        self._card = card
        for _, layer in named_layers(self.body):
            if isinstance(layer, ResizingHead):
                layer.align_corners = card.align_corners
        return self

    @property
    def align_corners(self) -> bool:
        """The corner rule of `upsample`."""
        return self._card.align_corners

    @property
    def feature_width(self) -> int:
        """F, the channels that the classifier reads."""
        first = next(m for m in self.classifier.modules() if isinstance(m, nn.Conv2d))
        return first.in_channels

    @property
    def heads(self) -> list[nn.Module]:
        """What learns at the head's rate: the classifier, and a body's own `decode_head`."""
        decode_head = getattr(self.body, "decode_head", None)
        own = [decode_head] if isinstance(decode_head, nn.Module) else []
        return [self.classifier, *own]

    def card(self, classes: tuple[str, ...] = ()) -> Card:
        """The card in use."""
        return dataclasses.replace(self._card, classes=classes)

    def prepare(self, images: Tensor) -> Tensor:
        """RGB images (B, 3, H, W) in [0, 1] -> the network's own input."""
        if self._card.channel_order == "bgr":
            images = images.flip(1)
        if self._card.value_range != 1:
            images = images * self._card.value_range
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> SegmenterOutput:
        """Features and logits on the network's own grid, for images (B, 3, H, W) in [0, 1]."""
        features = self.body(self.prepare(images))
        return SegmenterOutput(features, self.classifier(features))

    def logits(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Logits (B, C, *size), by default at the size of the images."""
        return self.upsample(self(images).logits, size or images.shape[-2:])

    def upsample(self, logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
        """Scale logits up in float32, with the corner rule the network was made with."""
        return F.interpolate(
            logits.float(), size=tuple(size), mode="bilinear", align_corners=self.align_corners
        )
