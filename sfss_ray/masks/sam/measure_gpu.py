"""Many masks at once at image size, for a GPU: measured, discarded, and enlarged again if they survive.

A CPU is fastest with one mask at a time, only where the mask can be (upsample.py). A GPU has the
bandwidth to enlarge whole masks, but waits for Python between small steps. Candidates are therefore
enlarged as in the stock generator, a few dozen in one call. Only their pixel counts, boxes and
low-resolution logits stay in memory, and nothing is copied to the CPU before the last batch. The few
masks that survive the suppression are enlarged again, and the GPU finds where their runs change.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sfss_ray.masks.bank import run_lengths
from sfss_ray.masks.sam.upsample import unpadded_low_size

# Pixels enlarged together: 256 MB in float32, plus about as much for intermediate arrays.
_PIXELS_AT_ONCE = 64 << 20
_BLOCK_PIXELS = 8 * 128


@dataclass(frozen=True)
class FullImageUpsampler:
    """Enlarges masks of images (or crops) of one size with the stock generator's own two passes.

    Attributes:
        low_size: (h, w) of the decoder's logits, padding included.
        padded_size: side in pixels of the square model input.
        input_size: (h, w) of the image at the network's size, without padding.
        original_size: (h, w) of the image in pixels.
    """

    low_size: tuple[int, int]
    padded_size: int
    input_size: tuple[int, int]
    original_size: tuple[int, int]

    def chunks(self, low: Tensor) -> Iterator[Tensor]:
        """Yield logits (k, H, W) of the masks `low` (n, h, w), a few masks at a time.

        (h, w) is low_size, or cropped to unpadded_low_size.
        """
        height, width = self.original_size
        pixels = max(height * width, self.padded_size**2)
        for part in low.split(max(1, _PIXELS_AT_ONCE // pixels)) if len(low) else ():
            yield self._enlarge(part)

    def _enlarge(self, low: Tensor) -> Tensor:
        height, width = self.input_size
        padded = _bilinear(*self._without_padding(low))[..., :height, :width]
        return _bilinear(padded, self.original_size)

    def _without_padding(self, low: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the low values that pixels of the image touch, and their size at model input."""
        rows, columns = unpadded_low_size(self.low_size, self.padded_size, self.input_size)
        size = (
            rows * self.padded_size // self.low_size[0],
            columns * self.padded_size // self.low_size[1],
        )
        return low[:, :rows, :columns], size


def _bilinear(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def measure_masks(
    low: Tensor, upsampler: FullImageUpsampler, mask_threshold: float, offset: float
) -> tuple[Tensor, Tensor]:
    """Return pixel counts and boxes of masks, on their device and without waiting for it.

    Args:
        low: float32 (n, h, w) low-resolution logits.
        upsampler: for the image or crop.
        mask_threshold: pixels with greater logits belong to the mask.
        offset: pixels are counted above mask_threshold + offset and above mask_threshold - offset.

    Returns:
        int32 (n, 2) counts, and int64 (n, 4) boxes x0 y0 x1 y1, zeros for an empty mask.
    """
    counts = [torch.zeros((0, 2), dtype=torch.int32, device=low.device)]
    boxes = [torch.zeros((0, 4), dtype=torch.int64, device=low.device)]
    for logits in upsampler.chunks(low):
        higher, lower = (count_pixels(logits > mask_threshold + d) for d in (offset, -offset))
        counts.append(torch.stack([higher, lower], dim=1).int())
        boxes.append(_boxes(logits > mask_threshold))
    return torch.cat(counts), torch.cat(boxes)


def count_pixels(masks: Tensor) -> Tensor:
    """Return the number of set pixels of each mask: bool (n, H, W) to int64 (n,).

    PyTorch converts every pixel to int64 before it sums, which on a GPU takes as long as all other
    work here. Eight adjacent pixels already are an int64, and up to 128 of them can be summed before
    one of the eight bytes overflows.
    """
    flat = masks.flatten(1)
    n_pixels = flat.shape[1]
    in_blocks = n_pixels // _BLOCK_PIXELS * _BLOCK_PIXELS if n_pixels % 8 == 0 else 0
    remainder = flat[:, in_blocks:].sum(dim=1)
    if not in_blocks:
        return remainder
    blocks = flat[:, :in_blocks].view(torch.int64).unflatten(1, (-1, _BLOCK_PIXELS // 8))
    return blocks.sum(dim=2).view(torch.uint8).sum(dim=1) + remainder


def _boxes(masks: Tensor) -> Tensor:
    """Return int64 (n, 4) boxes x0 y0 x1 y1 of bool (n, H, W), zeros for an empty mask."""
    (x0, x1), (y0, y1) = _first_and_last(masks.any(dim=1)), _first_and_last(masks.any(dim=2))
    boxes = torch.stack([x0, y0, x1, y1], dim=1)
    return boxes * (x1 >= 0)[:, None]


def _first_and_last(is_set: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and last true position of each row of (n, side); (side, -1) if none is."""
    positions = torch.arange(is_set.shape[1], device=is_set.device)
    first = torch.where(is_set, positions, is_set.shape[1]).amin(dim=1)
    return first, torch.where(is_set, positions, -1).amax(dim=1)


@dataclass(frozen=True)
class DeferredMasks:
    """Masks that are enlarged to image size only when their run lengths are needed.

    Attributes:
        logits: float32 (n, h, w), low-resolution.
        upsampler: for the image or crop.
        mask_threshold: pixels with greater logits belong to the mask.
    """

    logits: Tensor
    upsampler: FullImageUpsampler
    mask_threshold: float

    def select(self, indices: Tensor) -> "DeferredMasks":
        """Return the masks at `indices`, in that order."""
        selected = self.logits[indices.to(self.logits.device)]
        return DeferredMasks(selected, self.upsampler, self.mask_threshold)

    def counts_in_image(
        self, boxes: Tensor, origin: tuple[int, int], image_size: tuple[int, int]
    ) -> list[run_lengths.Counts]:
        """Return run lengths in an image, where the crop's first pixel lies at `origin` (y, x).

        `boxes` is not used: whole crops are enlarged.
        """
        crop_height = self.upsampler.original_size[0]
        return [
            run_lengths.counts_from_edges(edges, crop_height, origin, image_size)
            for logits in self.upsampler.chunks(self.logits)
            for edges in _edges(logits > self.mask_threshold, crop_height < image_size[0])
        ]


def _edges(masks: Tensor, separate: bool) -> list[NDArray[np.int64]]:
    """Return where the pixels of each mask (n, h, w) change, column by column, in one pass.

    With `separate` a background pixel is appended to each column, as counts_from_edges expects for a
    crop lower than the image.
    """
    n, height, width = masks.shape
    columns = torch.zeros((n, width, height + separate), dtype=torch.bool, device=masks.device)
    columns[:, :, :height] = masks.mT
    flat = columns.view(n, -1)
    changed = torch.zeros((n, flat.shape[1] + 1), dtype=torch.bool, device=masks.device)
    changed[:, 1:-1] = flat[:, 1:] != flat[:, :-1]
    changed[:, 0], changed[:, -1] = flat[:, 0], flat[:, -1]
    mask, position = torch.nonzero(changed).cpu().numpy().T
    return np.split(position, np.searchsorted(mask, np.arange(1, n)))
