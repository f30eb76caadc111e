"""Pixels of masks on a CPU: measured a strip at a time where the mask can be, kept as bits."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sfss_ray.masks.bank import run_lengths
from sfss_ray.masks.sam.upsample import RegionUpsampler

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels

# By how much two orders of the decoder's sums differ near the cut, as a part of a mask's largest
# logit: with trained weights a half of 1e-6 is the rule, with random ones twice of it; five times
# 1e-6 is the most that was seen at any pixel of a hundred masks.
_ROUNDING = 3e-6


@dataclass(frozen=True)
class PackedMask:
    """Pixels of a box as bits, a 32nd of the logits' memory; shape is (w, h).

    Attributes:
        bits: row by row.
        shape: (w, h) of the box, transposed.
        doubtful: a logit is so near to the cut that rounding decides on which side it lies.
    """

    bits: NDArray[np.uint8]
    shape: tuple[int, int]
    doubtful: bool = False

    @classmethod
    def pack(cls, pixels: NDArray[np.bool_], doubtful: bool = False) -> "PackedMask":
        """From boolean (w, h), the transposed box."""
        return cls(np.packbits(pixels), pixels.shape, doubtful)

    def unpack(self) -> NDArray[np.bool_]:
        """Boolean (h, w), a column-major view."""
        n = self.shape[0] * self.shape[1]
        return np.unpackbits(self.bits, count=n).view(bool).reshape(self.shape).T


@dataclass(frozen=True)
class PackedMasks:
    """The pixels of each mask's box."""

    masks: list[PackedMask]

    def select(self, index: Tensor) -> "PackedMasks":
        """Those at `index`, in that order."""
        return PackedMasks([self.masks[i] for i in index.tolist()])

    def runs(
        self, boxes: Tensor, origin: tuple[int, int], size: tuple[int, int]
    ) -> list[run_lengths.Counts]:
        """Run lengths in an image of `size` that has the crop's first pixel at `origin` (y, x)."""
        origins = [(y + origin[0], x + origin[1]) for x, y in boxes[:, :2].tolist()]
        return run_lengths.encode_masks([mask.unpack() for mask in self.masks], origins, size)


@dataclass(frozen=True)
class MeasuredMask:
    """A mask at image size.

    Attributes:
        pixels: how many lie above the higher and above the lower cut.
        box: of the mask, zeros when it is empty.
        mask: its pixels inside the box.
    """

    pixels: tuple[int, int]
    box: Box
    mask: PackedMask


_EMPTY_MASK = PackedMask.pack(np.zeros((1, 1), dtype=bool))
_EMPTY_BOX = (0, 0, 0, 0)


def measure_mask(
    low: NDArray[np.float32],
    upsampler: RegionUpsampler,
    cut: float,
    offset: float,
    look_for_doubts: bool = False,
) -> MeasuredMask:
    """Enlarges one mask where it can be.

    Args:
        low: float32 (h, w) low-resolution logits.
        upsampler: for the image or crop.
        cut: logits above are the mask.
        offset: pixels are counted above cut + offset and above cut - offset.
        look_for_doubts: tell whether rounding decides a pixel.
    """
    region = upsampler.region(low, above=cut - abs(offset))
    if region is None:
        return MeasuredMask((0, 0), _EMPTY_BOX, _EMPTY_MASK)
    mask = np.empty(region.shape, dtype=bool)
    higher = lower = 0
    nearest = np.inf
    for part, logits in region.strips():
        higher += int(np.count_nonzero(logits > cut + offset))
        lower += int(np.count_nonzero(logits > cut - offset))
        np.greater(logits, cut, out=mask[part])
        if look_for_doubts:
            nearest = min(nearest, _nearest(logits, cut))
    box = tight_box(mask)
    if box is None:
        return MeasuredMask((higher, lower), _EMPTY_BOX, _EMPTY_MASK)
    x0, y0, x1, y1 = box
    doubtful = nearest <= _ROUNDING * float(np.abs(low).max())
    packed = PackedMask.pack(mask[x0 : x1 + 1, y0 : y1 + 1], doubtful)
    x, y = region.columns.start, region.rows.start
    return MeasuredMask((higher, lower), (x0 + x, y0 + y, x1 + x, y1 + y), packed)


def _nearest(logits: NDArray[np.float32], cut: float) -> float:
    """Smallest distance of a logit from the cut; `logits` are overwritten, a copy would cost more."""
    if cut != 0:
        logits -= cut
    return float(np.abs(logits, out=logits).min())


def tight_box(pixels: NDArray[np.bool_]) -> Box | None:
    """x0, y0, x1, y1 of the first and last pixels of a mask (w, h), None for an empty one."""
    # OpenCV's rectangle of an array has the first axis as its height.
    y, x, height, width = cv2.boundingRect(np.ascontiguousarray(pixels).view(np.uint8))
    return (x, y, x + width - 1, y + height - 1) if width else None
