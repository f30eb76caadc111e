"""The interface of all networks: RGB images in [0, 1] in, features and logits out."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.data.class_sets import ClassSet
from sfss_ray.models.card import Card
from sfss_ray.models.user_code.layers import named_layers

if TYPE_CHECKING:
    from sfss_ray.models.load_report import LoadReport


class SegmenterOutput(NamedTuple):
    """Features (B, F, h, w) and logits (B, C, h', w'), on grids of their own.

    Features are those that the last layer of the classifier reads, or those of a layer that a user
    names. The contrast uses the features' grid. Labels are learnt from the logits, scaled up to pixels.
    """

    features: Tensor
    logits: Tensor


class ResizingHead(nn.Module):
    """A decode head that resizes feature maps, with the same corner rule as the final upsampling."""

    align_corners = False


class Segmenter(nn.Module):
    """A body that computes features, a classifier on top of it, and the preprocessing of the images.

    Args:
        body: Maps normalised images (B, 3, H, W) to features (B, F, h, w).
        classifier: Maps features to logits (B, C, h, w) on the same grid.
        card: The preprocessing and the corner rule, by default those of ImageNet models. Its class names
            are ignored here: they belong to the `SourceModel`. `use_card` replaces it.

    Attributes:
        name: Its key in NETWORKS, or `custom`. The `SourceModel` around the network sets this one and
            the next three.
        classes: The meaning of its outputs; None for a network that never was in a `SourceModel`.
        facts: Who made it, and from what.
        load_report: How the file it was read from fitted it.
        options: The options it was built with, see `build_network`.
        size_multiple: Sides of its input images must be multiples of this number of pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, classifier: nn.Module, card: Card | None = None):
        super().__init__()
        self.name = ""
        self.classes: ClassSet | None = None
        self.facts: dict[str, Any] = {}
        self.load_report: LoadReport | None = None
        self.options: dict[str, Any] = {}
        self.size_multiple = 1
        self.body = body
        self.classifier = classifier
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(1, 3, 1, 1), persistent=False)
        self.use_card(card or Card())

    def use_card(self, card: Card) -> Segmenter:
        """Adopt the preprocessing and the corner rule of a card, and return the network itself."""
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
        """F, the number of channels that the classifier reads."""
        kinds = (nn.Conv2d, nn.ConvTranspose2d)
        convolutions = (m for m in self.classifier.modules() if isinstance(m, kinds))
        return next(convolutions).in_channels

    @property
    def heads(self) -> list[nn.Module]:
        """The modules that train at the head's learning rate: the classifier and any `decode_head`."""
        decode_head = getattr(self.body, "decode_head", None)
        heads = [self.classifier]
        if isinstance(decode_head, nn.Module):
            heads.append(decode_head)
        return heads

    def card(self, classes: tuple[str, ...] = ()) -> Card:
        """Return the card in use, with these class names."""
        return dataclasses.replace(self._card, classes=classes)

    def prepare(self, images: Tensor) -> Tensor:
        """Convert RGB images (B, 3, H, W) in [0, 1] to the input that the body expects."""
        if self._card.channel_order == "bgr":
            images = images.flip(1)
        if self._card.value_range != 1:
            images = images * self._card.value_range
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> SegmenterOutput:
        """Return features and logits on the network's own grids for images (B, 3, H, W) in [0, 1]."""
        features = self.body(self.prepare(images))
        return SegmenterOutput(features, self.classifier(features))

    def logits(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Return logits (B, C, *size), by default at the size of the images."""
        return self.upsample(self(images).logits, size or images.shape[-2:])

    def upsample(self, logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
        """Resize logits to `size` in float32, with the corner rule of the card."""
        return F.interpolate(
            logits.float(), size=tuple(size), mode="bilinear", align_corners=self.align_corners
        )
