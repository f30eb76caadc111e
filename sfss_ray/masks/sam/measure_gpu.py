"""Many masks at once at image size, for a GPU: measured, forgotten, and made again when they stay.

A CPU is fastest with one mask at a time and only where the mask can be (upsample.py). A GPU has the
bandwidth to enlarge all of them whole, but waits for Python between small steps. So candidates are
enlarged as the stock generator does, a few dozen in one call, and only their pixel counts and boxes
are kept beside the low-resolution logits: nothing goes to the CPU before the last batch. The few
masks that survive the suppression are enlarged once more, and the GPU finds where their runs change.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sfss_ray.masks.bank import run_lengths
from sfss_ray.masks.sam.upsample import low_size_seen

# Pixels that are enlarged together: 256 MB in float32, and about as much beside them.
_PIXELS_AT_ONCE = 64 << 20
_WORDS_PIXELS = 8 * 128


@dataclass(frozen=True)
class WholeUpsampler:
    """Enlarges masks of images (or crops) of one size with the stock generator's own two passes.

    Attributes:
        low_size: (h, w) of the decoder's logits, padding included.
        padded_size: side in pixels of the square model input.
        input_size: (h, w) of the image as the model sees it, without padding.
        original_size: (h, w) of the image in pixels.
    """

    low_size: tuple[int, int]
    padded_size: int
    input_size: tuple[int, int]
    original_size: tuple[int, int]

    def chunks(self, low: Tensor) -> Iterator[Tensor]:
        """Logits (k, H, W) of a few of the masks (n, h, w) after the other.

        (h, w) is low_size or what low_size_seen leaves of it.
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
        """The part of the low values that pixels of the image touch, and its size at model input."""
        rows, columns = low_size_seen(self.low_size, self.padded_size, self.input_size)
        size = (
            rows * self.padded_size // self.low_size[0],
            columns * self.padded_size // self.low_size[1],
        )
        return low[:, :rows, :columns], size


def _bilinear(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def measure_whole(
    low: Tensor, upsampler: WholeUpsampler, cut: float, offset: float
) -> tuple[Tensor, Tensor]:
    """Pixel counts and boxes of masks, on their device and without waiting for it.

    Args:
        low: float32 (n, h, w) low-resolution logits.
        upsampler: for the image.
        cut: logits above are the mask.
        offset: pixels are counted above cut + offset and above cut - offset.

    Returns:
        int32 (n, 2) counts, and int64 (n, 4) boxes x0 y0 x1 y1, zeros for an empty mask.
    """
    counts = [torch.zeros((0, 2), dtype=torch.int32, device=low.device)]
    boxes = [torch.zeros((0, 4), dtype=torch.int64, device=low.device)]
    for logits in upsampler.chunks(low):
        higher, lower = (pixels_of(logits > cut + d) for d in (offset, -offset))
        counts.append(torch.stack([higher, lower], dim=1).int())
        boxes.append(_boxes(logits > cut))
    return torch.cat(counts), torch.cat(boxes)


def pixels_of(masks: Tensor) -> Tensor:
    """int64 (n,): how many pixels of each mask, bool (n, H, W), are set.

    PyTorch makes an int64 of every pixel before it adds them up, which on a GPU takes as long as all
    else here. Eight pixels side by side are an int64 already, and 128 of those add up without any of
    the eight bytes running over into the next.
    """
    flat = masks.flatten(1)
    pixels = flat.shape[1]
    in_words = pixels // _WORDS_PIXELS * _WORDS_PIXELS if pixels % 8 == 0 else 0
    rest = flat[:, in_words:].sum(dim=1)
    if not in_words:
        return rest
    words = flat[:, :in_words].view(torch.int64).unflatten(1, (-1, _WORDS_PIXELS // 8))
    return words.sum(dim=2).view(torch.uint8).sum(dim=1) + rest


def _boxes(masks: Tensor) -> Tensor:
    (x0, x1), (y0, y1) = _first_and_last(masks.any(dim=1)), _first_and_last(masks.any(dim=2))
    boxes = torch.stack([x0, y0, x1, y1], dim=1)
    return boxes * (x1 >= 0)[:, None]


def _first_and_last(used: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of (n, side); (side, -1) where nothing is used."""
    place = torch.arange(used.shape[1], device=used.device)
    first = torch.where(used, place, used.shape[1]).amin(dim=1)
    return first, torch.where(used, place, -1).amax(dim=1)


@dataclass(frozen=True)
class LaterMasks:
    """Masks that are made when their runs are asked for.

    Attributes:
        low: float32 (n, h, w) low-resolution logits.
        upsampler: for the image or crop.
        cut: logits above are the mask.
    """

    low: Tensor
    upsampler: WholeUpsampler
    cut: float

    def select(self, index: Tensor) -> "LaterMasks":
        """Those at `index`, in that order."""
        return LaterMasks(self.low[index.to(self.low.device)], self.upsampler, self.cut)

    def runs(self, boxes: Tensor, origin: tuple[int, int], size: tuple[int, int]) -> list:
        """Run lengths in an image of `size` that has the crop's first pixel at `origin` (y, x)."""
        crop_height = self.upsampler.original_size[0]
        return [
            run_lengths.counts_of_edges(edges, crop_height, origin, size)
            for logits in self.upsampler.chunks(self.low)
            for edges in _edges(logits > self.cut, crop_height < size[0])
        ]


def _edges(masks: Tensor, separate: bool) -> list[NDArray[np.int64]]:
    """As run_lengths.edges_of_columns for each of (n, h, w), all of them in one pass."""
    n, height, width = masks.shape
    columns = torch.zeros((n, width, height + separate), dtype=torch.bool, device=masks.device)
    columns[:, :, :height] = masks.mT
    flat = columns.view(n, -1)
    changed = torch.zeros((n, flat.shape[1] + 1), dtype=torch.bool, device=masks.device)
    changed[:, 1:-1] = flat[:, 1:] != flat[:, :-1]
    changed[:, 0], changed[:, -1] = flat[:, 0], flat[:, -1]
    mask, place = torch.nonzero(changed).cpu().numpy().T
    return np.split(place, np.searchsorted(mask, np.arange(1, n)))
