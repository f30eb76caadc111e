"""Masks at image size on a CPU: measured a strip at a time where the mask can be, stored as bits."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sfss_ray.masks.bank import run_lengths
from sfss_ray.masks.sam.boxes import Box
from sfss_ray.masks.sam.upsample import RegionUpsampler

# How far two orders of the decoder's sums differ near the threshold, relative to a mask's largest
# logit. Trained weights typically give 0.5e-6, random weights twice that. The largest difference at
# any pixel of a hundred masks was 5e-6. With 3e-6, 3 of 404 masks of random weights differed in a
# pixel, with 5e-6 none.
_ROUNDING = 5e-6


@dataclass(frozen=True)
class PackedMask:
    """The pixels of a mask's box as bits, which take a 32nd of the memory of the logits.

    Attributes:
        bits: row by row.
        shape: (w, h) of the box, transposed.
        ambiguous: a logit is so close to the threshold that rounding decides on which side it lies.
    """

    bits: NDArray[np.uint8]
    shape: tuple[int, int]
    ambiguous: bool = False

    @classmethod
    def pack(cls, pixels: NDArray[np.bool_], ambiguous: bool = False) -> "PackedMask":
        """Pack bool (w, h), the transposed pixels of the box."""
        return cls(np.packbits(pixels), pixels.shape, ambiguous)

    def unpack(self) -> NDArray[np.bool_]:
        """Return bool (h, w), a column-major view."""
        n = self.shape[0] * self.shape[1]
        return np.unpackbits(self.bits, count=n).view(bool).reshape(self.shape).T


@dataclass(frozen=True)
class PackedMasks:
    """The pixels of the boxes of several masks."""

    masks: list[PackedMask]

    def select(self, indices: Tensor) -> "PackedMasks":
        """Return the masks at `indices`, in that order."""
        return PackedMasks([self.masks[i] for i in indices.tolist()])

    def counts_in_image(
        self, boxes: Tensor, origin: tuple[int, int], image_size: tuple[int, int]
    ) -> list[run_lengths.Counts]:
        """Return run lengths in an image, where the crop's first pixel lies at `origin` (y, x)."""
        origins = [(y + origin[0], x + origin[1]) for x, y in boxes[:, :2].tolist()]
        pixels = [mask.unpack() for mask in self.masks]
        return run_lengths.encode_masks(pixels, origins, image_size)


@dataclass(frozen=True)
class MeasuredMask:
    """A mask at image size.

    Attributes:
        pixel_counts: pixels above the higher and above the lower threshold.
        box: of the mask, zeros if it is empty.
        mask: its pixels inside the box.
    """

    pixel_counts: tuple[int, int]
    box: Box
    mask: PackedMask


def pack_in_box(pixels: NDArray[np.bool_]) -> tuple[PackedMask, Box]:
    """Return the pixels (w, h) of a mask inside its box, and the box, zeros if it is empty."""
    box = tight_box(pixels)
    if box is None:
        return _EMPTY_MASK, _EMPTY_BOX
    x0, y0, x1, y1 = box
    return PackedMask.pack(pixels[x0 : x1 + 1, y0 : y1 + 1]), box


_EMPTY_MASK = PackedMask.pack(np.zeros((1, 1), dtype=bool))
_EMPTY_BOX = (0, 0, 0, 0)


def measure_mask(
    low: NDArray[np.float32],
    upsampler: RegionUpsampler,
    mask_threshold: float,
    offset: float,
    check_rounding: bool = False,
) -> MeasuredMask:
    """Enlarge one mask where it can be, and measure it.

    Args:
        low: float32 (h, w) low-resolution logits.
        upsampler: for the image or crop.
        mask_threshold: pixels with greater logits belong to the mask.
        offset: pixels are counted above mask_threshold + offset and above mask_threshold - offset.
        check_rounding: find out whether rounding decides a pixel.
    """
    region = upsampler.region(low, above=mask_threshold - abs(offset))
    if region is None:
        return MeasuredMask((0, 0), _EMPTY_BOX, _EMPTY_MASK)
    pixels = np.empty(region.shape, dtype=bool)
    higher = lower = 0
    distance = np.inf
    for part, logits in region.strips():
        higher += int(np.count_nonzero(logits > mask_threshold + offset))
        lower += int(np.count_nonzero(logits > mask_threshold - offset))
        np.greater(logits, mask_threshold, out=pixels[part])
        if check_rounding:
            distance = min(distance, _smallest_distance(logits, mask_threshold))
    box = tight_box(pixels)
    if box is None:
        return MeasuredMask((higher, lower), _EMPTY_BOX, _EMPTY_MASK)
    x0, y0, x1, y1 = box
    ambiguous = distance <= _ROUNDING * float(np.abs(low).max())
    packed = PackedMask.pack(pixels[x0 : x1 + 1, y0 : y1 + 1], ambiguous)
    x, y = region.columns.start, region.rows.start
    return MeasuredMask((higher, lower), (x0 + x, y0 + y, x1 + x, y1 + y), packed)


def _smallest_distance(logits: NDArray[np.float32], mask_threshold: float) -> float:
    """Return the smallest distance of a logit from the threshold.

    `logits` is overwritten, because a copy would take longer than the comparison.
    """
    if mask_threshold != 0:
        logits -= mask_threshold
    return float(np.abs(logits, out=logits).min())


def tight_box(pixels: NDArray[np.bool_]) -> Box | None:
    """Return x0, y0, x1, y1 of the first and last pixels of a mask (w, h), or None if it is empty."""
    # OpenCV's rectangle of an array has the first axis as its height.
    y, x, height, width = cv2.boundingRect(np.ascontiguousarray(pixels).view(np.uint8))
    return (x, y, x + width - 1, y + height - 1) if width else None
