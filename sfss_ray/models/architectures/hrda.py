"""HRDA: context of the whole image at half size and detail at full size, fused by learned attention.

Source: Hoyer et al., ECCV 2022, and its public code: detail comes from crops of 512 x 512 that overlap
by half, whose logits are averaged. The classifier is affine, so averaging features is the same: it
reads them once. An image of at most 512 x 512 is one crop. Where height and width are multiples of 8
the fusion is that of its code; other sizes are resized to the finer grid.

Its makers scaled the Cityscapes images to 2048 x 1024 for it: half of the detail is lost at 1024 x 512.
In training its code looks at one random crop in detail; here the detail of the whole image is learnt.
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
SMALLEST = 58
"""Half of it makes the 8 x 8 cells that the first stage's reduction asks for."""


class HRDABody(nn.Module):
    """Encoder and one decode head for both sizes, and the head that attention is read from."""

    def __init__(self, encoder: nn.Module, head: nn.Module, attention: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.decode_head = nn.ModuleDict({"head": head, "scale_attention": attention})

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features (B, F, h, w) of detail and (B, F, h / 2, w / 2) of context, and of attention."""
        if min(images.shape[-2:]) < SMALLEST:
            raise ConfigError(
                f"an image or crop is {images.shape[-2]}x{images.shape[-1]}, too small"
                f" for HRDA: allowed are heights and widths from {SMALLEST} on (train.augment.crop_size)"
            )
        half = F.interpolate(images, scale_factor=0.5, mode="bilinear", align_corners=False)
        stages = self._stages(half)
        context = self.decode_head["head"](stages)
        attention = self.decode_head["scale_attention"](stages)
        return self._detail(images), context, attention

    def _detail(self, images: Tensor) -> Tensor:
        """Features of crops, averaged where crops overlap."""
        height, width = images.shape[-2:]
        if height <= CROP and width <= CROP:
            return self.decode_head["head"](self._stages(images))
        # Crops of one size on the grid: a few pixels of the border are repeated.
        images = F.pad(images, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        height, width = images.shape[-2:]
        boxes = [(y, x) for y in _starts(height) for x in _starts(width)]
        crops = [images[:, :, y : y + CROP, x : x + CROP] for y, x in boxes]
        seen = self.decode_head["head"](self._stages(torch.cat(crops)))
        rows, columns = height // STRIDE, width // STRIDE
        total = seen.new_zeros(len(images), seen.shape[1], rows, columns)
        count = seen.new_zeros(1, 1, rows, columns)
        for (y, x), part in zip(boxes, seen.split(len(images)), strict=True):
            top, left = y // STRIDE, x // STRIDE
            bottom, right = top + part.shape[2], left + part.shape[3]
            total[:, :, top:bottom, left:right] += part
            count[:, :, top:bottom, left:right] += 1
        return total / count

    def _stages(self, images: Tensor) -> list[Tensor]:
        stages = []
        for stage in self.encoder.get_submodule("stages").children():
            images = stage(images)
            stages.append(images)
        return stages


class HRDASegmenter(Segmenter):
    """Features are those of the detail; logits are detail * a + upsampled context * (1 - a).

    a = sigmoid of the attention's logits, one for each class and cell of the context's grid.
    """

    def __init__(self, body: HRDABody, classifier: nn.Module, attention: nn.Module):
        super().__init__(body, nn.ModuleDict({"seg": classifier, "attention": attention}))

    def forward(self, images: Tensor) -> SegmenterOutput:
        """Features and logits on the grid of the detail, for images (B, 3, H, W) in [0, 1]."""
        detail, context, attended = self.body(self.prepare(images))
        layers: nn.ModuleDict = self.classifier  # pyright: ignore[reportAssignmentType]
        share = torch.sigmoid(layers["attention"](attended))
        size = detail.shape[-2:]
        coarse = _resized((1 - share) * layers["seg"](context), size)
        return SegmenterOutput(detail, _resized(share, size) * layers["seg"](detail) + coarse)


def _starts(length: int) -> Iterator[int]:
    """First pixels of crops, a step apart; the last one ends at the border."""
    last = max(length - CROP, 0)
    yield from range(0, last, STEP)
    yield last


def _resized(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
