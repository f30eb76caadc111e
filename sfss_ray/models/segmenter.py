"""The interface of all networks: RGB images in [0, 1] in, features and logits out."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.data.class_groups import ClassGroups
from sfss_ray.data.class_sets import ClassSet
from sfss_ray.models.card import Card
from sfss_ray.models.user_code.layers import named_layers

if TYPE_CHECKING:
    from sfss_ray.models.load_report import LoadReport
    from sfss_ray.models.read_file import ReadFile


class SegmenterOutput(NamedTuple):
    """Features (B, F, h, w) and logits (B, C, h', w').

    Features are those that the last layer of the classifier reads. The grids differ where this layer
    scales its output up. C is the number of groups for a network with class groups, else the number of
    its outputs.
    """

    features: Tensor
    logits: Tensor


class ResizingHead(nn.Module):
    """A decode head that resizes feature maps, with the same corner rule as the final upsampling."""

    align_corners = False


class Segmenter(nn.Module):
    """A body that computes features, a classifier on top of it, and the preprocessing of the images.

    Subclasses override `output_grid` and `output_logits`, which know nothing of class groups.

    Args:
        body: Maps normalised images (B, 3, H, W) to features (B, F, h, w).
        classifier: Maps features to logits (B, C, h, w) on the same grid.
        card: The preprocessing and the corner rule, by default those of ImageNet models. Its class names
            are ignored here: they belong to the `SourceModel`. `use_card` replaces it.

    Attributes:
        name: Its key in NETWORKS, or `custom`. The `SourceModel` around the network sets this one and
            the next three.
        classes: The meaning of its logits; None for a network that never was in a `SourceModel`.
        facts: Who made it, and from what.
        load_report: How the file it was read from fitted it.
        read_from: The file that its weights were read from, where it is a user's own module.
        options: The options it was built with, see `build_network`.
        class_groups: The groups that its logits are of; None where each output has its own logit.
        output_classes: The classes of its outputs, where it has class groups.
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
        self.read_from: ReadFile | None = None
        self.options: dict[str, Any] = {}
        self.class_groups: ClassGroups | None = None
        self.output_classes: ClassSet | None = None
        self._members: tuple[tuple[int, ...], ...] = ()
        """Indices of the outputs in each group."""
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

    def use_groups(self, groups: ClassGroups, outputs: ClassSet) -> Segmenter:
        """Make the groups of the outputs the network's classes, and return the network itself.

        Args:
            groups: Groups of these outputs, see `ClassGroups.fitted`.
            outputs: The classes of the outputs, in their order.
        """
        self._members = groups.member_indices(outputs)
        self.class_groups, self.output_classes = groups, outputs
        self.classes = groups.class_set()
        return self

    def remove_groups(self) -> Segmenter:
        """Make the outputs the network's classes again, and return the network itself."""
        if self.output_classes is not None:
            self.classes = self.output_classes
        self.class_groups, self.output_classes, self._members = None, None, ()
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
        output = self.output_grid(images)
        return output._replace(logits=self.group(output.logits))

    def logits(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Return logits (B, C, *size), by default at the size of the images.

        The logits of the outputs are upsampled before they are grouped, so that the probability of a
        group is the sum of those of its members at every pixel.
        """
        return self.group(self.output_logits(images, size))

    def output_grid(self, images: Tensor) -> SegmenterOutput:
        """Return features and the logits of all outputs on the network's own grids."""
        features = self.body(self.prepare(images))
        return SegmenterOutput(features, self.classifier(features))

    def output_logits(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Return the logits of all outputs at `size`, by default at the size of the images.

        The images (B, 3, H, W) may be of any size: they are padded to sides that the network takes.
        """
        height, width = images.shape[-2:]
        if self.size_multiple == 1:
            return self.upsample(self.grid_logits(images), size or (height, width))
        padded = self.pad(images)
        logits = self.upsample(self.grid_logits(padded), padded.shape[-2:])[..., :height, :width]
        return logits if size is None or size == (height, width) else self.upsample(logits, size)

    def group(self, logits: Tensor) -> Tensor:
        """Convert logits of the outputs (B, O, h, w) to logits of the groups (B, C, h, w).

        The logit of a group is log(sum of exp(l)) over the logits l of its members. Its softmax over the
        groups is

            sum of exp(l) over its members / sum of exp(l) over the members of all groups.

        Divided by the sum of exp(l) over all outputs, the numerator is the sum of the members'
        probabilities and the denominator is the probability of all outputs that were not dropped. The
        probabilities of a group's members add up, renormalised over the kept outputs.

        Without class groups the logits are returned as they are.
        """
        if not self._members:
            return logits
        # Planes in one piece are summed twice as fast as channels-last ones. The gradient of slices, in
        # place of unbind, would fill a tensor for each.
        outputs = logits.float().contiguous().unbind(1)
        groups = [[outputs[index] for index in members] for members in self._members]
        return torch.stack([_log_sum_exp(members) for members in groups], 1)

    def grid_logits(self, images: Tensor) -> Tensor:
        """Return the logits of all outputs on the network's own grid.

        Args:
            images: (B, 3, H, W) in [0, 1], sides multiples of `size_multiple`.
        """
        return self.output_grid(images).logits

    def pad(self, images: Tensor) -> Tensor:
        """Return images (B, 3, H, W) with sides that are multiples of `size_multiple`.

        Their last column and row are repeated at the right and at the bottom. So the padding has no
        edge that a network could mistake for an object, and cells keep their positions.
        """
        if self.size_multiple == 1:
            return images
        height, width = images.shape[-2:]
        padding = (0, -width % self.size_multiple, 0, -height % self.size_multiple)
        return F.pad(images, padding, mode="replicate")

    def upsample(self, logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
        """Resize logits to `size` in float32, with the corner rule of the card."""
        return F.interpolate(
            logits.float(), size=tuple(size), mode="bilinear", align_corners=self.align_corners
        )


def _log_sum_exp(planes: list[Tensor]) -> Tensor:
    """Return log(sum of exp(l)) over the planes l, which is l itself for a single one."""
    return planes[0] if len(planes) == 1 else torch.logsumexp(torch.stack(planes), 0)
