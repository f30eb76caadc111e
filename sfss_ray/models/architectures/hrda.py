"""HRDA: context from the image at half size and detail at full size, fused by learned attention.

Source: Hoyer et al., ECCV 2022, and its public code. Detail comes from 512 x 512 crops that overlap by
half, and their logits are averaged where they overlap. The classifier is affine, so averaging features
gives the same logits with a single pass of the classifier. An image of at most 512 x 512 is one crop.

Differences from its code: images whose height or width is no multiple of 8 are resized to the finer grid
before the fusion, and in training the whole image is processed in detail instead of one random crop.

Its authors fed Cityscapes images of 2048 x 1024 pixels. At 1024 x 512, half of the detail is lost.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.errors import ConfigError
from sfss_ray.models.segmenter import Segmenter, SegmenterOutput

CROP = 512
STEP = CROP // 2
STRIDE = 4
MIN_SIZE = 58
"""At half of this size the first stage has 8 x 8 cells, the kernel size of its sequence reduction."""


class HRDABody(nn.Module):
    """An encoder, one decode head for both scales, and the decode head of the attention."""

    def __init__(self, encoder: nn.Module, head: nn.Module, attention: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.decode_head = nn.ModuleDict({"head": head, "scale_attention": attention})

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features of detail (B, F, h, w), and of context and attention (B, F, h / 2, w / 2).

        Raises:
            ConfigError: the images are too small.
        """
        if min(images.shape[-2:]) < MIN_SIZE:
            raise ConfigError(
                f"an image or crop is {images.shape[-2]}x{images.shape[-1]}, too small for HRDA:"
                f" allowed are heights and widths of at least {MIN_SIZE} (train.augment.crop_size)"
            )
        half = F.interpolate(images, scale_factor=0.5, mode="bilinear", align_corners=False)
        stages = self._stages(half)
        context = self.decode_head["head"](stages)
        attention = self.decode_head["scale_attention"](stages)
        return self._detail(images), context, attention

    def _detail(self, images: Tensor) -> Tensor:
        """Return the features of crops, averaged where crops overlap."""
        height, width = images.shape[-2:]
        if height <= CROP and width <= CROP:
            return self.decode_head["head"](self._stages(images))
        # Padding to the grid of features lets all crops have one size and run as one batch.
        images = F.pad(images, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        height, width = images.shape[-2:]
        corners = [(y, x) for y in _crop_starts(height) for x in _crop_starts(width)]
        crops = [images[:, :, y : y + CROP, x : x + CROP] for y, x in corners]
        features = self.decode_head["head"](self._stages(torch.cat(crops)))

        grid_height, grid_width = height // STRIDE, width // STRIDE
        total = features.new_zeros(len(images), features.shape[1], grid_height, grid_width)
        count = features.new_zeros(1, 1, grid_height, grid_width)
        for (y, x), crop_features in zip(corners, features.split(len(images)), strict=True):
            rows = slice(y // STRIDE, y // STRIDE + crop_features.shape[2])
            columns = slice(x // STRIDE, x // STRIDE + crop_features.shape[3])
            total[:, :, rows, columns] += crop_features
            count[:, :, rows, columns] += 1
        return total / count

    def _stages(self, images: Tensor) -> list[Tensor]:
        stages = []
        for stage in self.encoder.get_submodule("stages").children():
            images = stage(images)
            stages.append(images)
        return stages


class HRDASegmenter(Segmenter):
    """A segmenter whose logits are a * detail + (1 - a) * context, and whose features are the detail's.

    a is the sigmoid of the attention's logits, one for each class and each cell of the context's grid.
    """

    def __init__(self, body: HRDABody, classifier: nn.Module, attention: nn.Module):
        super().__init__(body, nn.ModuleDict({"seg": classifier, "attention": attention}))

    def output_grid(self, images: Tensor) -> SegmenterOutput:
        """Return features and logits on the grid of the detail for images (B, 3, H, W) in [0, 1]."""
        detail, context, attention_features = self.body(self.prepare(images))
        layers: nn.ModuleDict = self.classifier  # pyright: ignore[reportAssignmentType]
        attention = torch.sigmoid(layers["attention"](attention_features))
        size = detail.shape[-2:]
        coarse = _resize((1 - attention) * layers["seg"](context), size)
        return SegmenterOutput(detail, _resize(attention, size) * layers["seg"](detail) + coarse)


def _crop_starts(length: int) -> Iterator[int]:
    """Yield the first pixels of crops, a step apart; the last crop ends at the border."""
    last_start = max(length - CROP, 0)
    yield from range(0, last_start, STEP)
    yield last_start


def _resize(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
