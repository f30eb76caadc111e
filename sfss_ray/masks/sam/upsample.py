"""Upsampling of low-resolution mask logits to image pixels, only where the mask can be.

SAM enlarges its logits twice with bilinear interpolation: from the decoder's size to the padded model
input, then, with the padding cut off, to the image. Both passes are linear and act on rows and columns
separately, so together they are

    full = A_rows @ low @ A_columns^T

with one matrix for each axis. A row of such a matrix has at most a few adjacent nonzero weights (a
band), which are not negative and sum to 1. A pixel's value therefore never exceeds the largest low
value that it touches. If only values above a threshold matter, pixels that touch no low value above it
need not be computed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

# Outputs computed together. Smaller blocks cost more calls. Larger blocks multiply more zeros of the
# band and do not stay in a cache.
_BLOCK = 64


@dataclass(frozen=True)
class Region:
    """Part of an enlarged mask, in image pixels.

    Attributes:
        rows, columns: where the part lies in the image.
    """

    rows: slice
    columns: slice
    _enlarged_rows: NDArray[np.float32]  # (low-resolution columns, rows)
    _band: "_Band"

    @property
    def shape(self) -> tuple[int, int]:
        """(w, h), transposed like the strips."""
        return self.columns.stop - self.columns.start, self._enlarged_rows.shape[1]

    def strips(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield the logits (n, h) of a few columns at a time, with the columns in the region.

        Columns come first, because runs of an RLE go down the columns of the image. A large mask is
        never whole in memory, and a strip is still in the caches when it is compared.
        """
        return self._band.products(self._enlarged_rows, self.columns)


class RegionUpsampler:
    """Enlarges masks of images (or crops) of one size; matrices of recent sizes are cached.

    Args:
        low_size: (h, w) of the decoder's logits.
        padded_size: side in pixels of the square model input.
        input_size: (h, w) of the image at the network's size, without padding.
        original_size: (h, w) of the image in pixels.
    """

    def __init__(
        self,
        low_size: tuple[int, int],
        padded_size: int,
        input_size: tuple[int, int],
        original_size: tuple[int, int],
    ) -> None:
        axes = zip(low_size, input_size, original_size, strict=True)
        self._rows, self._columns = (
            _cached_band(low, padded_size, unpadded, original) for low, unpadded, original in axes
        )

    def region(self, low: NDArray[np.float32], above: float) -> Region | None:
        """Return the part of the mask that contains every pixel with a logit greater than `above`.

        Args:
            low: float32 logits, (h, w) as `low_size` or cropped to unpadded_low_size.
            above: pixels with logits not greater than this may be missing.

        Returns:
            The part, or None if no pixel can be greater than `above`.
        """
        x, y, width, height = cv2.boundingRect((low > above).view(np.uint8))
        rows = self._rows.outputs_of(y, y + height)
        columns = self._columns.outputs_of(x, x + width)
        if rows is None or columns is None:
            return None
        low_columns = self._columns.inputs_of(columns.start, columns.stop)
        touched = low[self._rows.inputs_of(rows.start, rows.stop), low_columns]
        shape = (low_columns.stop - low_columns.start, rows.stop - rows.start)
        enlarged_rows = np.empty(shape, dtype=np.float32)
        for part, block in self._rows.products(touched, rows):
            enlarged_rows[:, part] = block.T
        return Region(rows, columns, enlarged_rows, self._columns)


def enlarge_as_stock(
    low: Tensor, padded_size: int, input_size: tuple[int, int], original_size: tuple[int, int]
) -> Tensor:
    """Return logits (n, H, W) of the whole image, rounded as the stock generators round them.

    Args:
        low: float32 (n, h, w), the decoder's logits.
        padded_size, input_size, original_size: as for RegionUpsampler.
    """
    # Torch sums in another order for other numbers of channels, and the stock generators enlarge the
    # three masks of a point together.
    channels = low[:, None].repeat(1, 3, 1, 1)
    padded = F.interpolate(
        channels, (padded_size, padded_size), mode="bilinear", align_corners=False
    )
    unpadded = padded[..., : input_size[0], : input_size[1]]
    return F.interpolate(unpadded, original_size, mode="bilinear", align_corners=False)[:, 0]


def unpadded_low_size(
    low_size: tuple[int, int], padded_size: int, input_size: tuple[int, int] | None
) -> tuple[int, int]:
    """Return (h, w) of the low values that pixels of the image touch; the rest belongs to padding.

    Args:
        low_size: (h, w) of the decoder's logits.
        padded_size: side in pixels of the square model input.
        input_size: (h, w) of the image at the network's size, without padding; None for no padding.
    """
    # Only with an integer factor between the sizes do positions stay the same with fewer rows.
    if input_size is None or any(padded_size % side for side in low_size):
        return low_size
    rows, columns = (
        min(side, -(-unpadded * side // padded_size) + 1)
        for side, unpadded in zip(low_size, input_size, strict=True)
    )
    return rows, columns


class _Band:
    """A matrix (outputs, inputs) whose nonzero weights form a band that only moves to the right."""

    def __init__(self, weights: NDArray[np.float32]) -> None:
        nonzero = weights != 0
        self._weights = weights
        self._first = nonzero.argmax(axis=1)
        self._last = nonzero.shape[1] - 1 - nonzero[:, ::-1].argmax(axis=1)
        # For each input k: the first output with a weight at k or later, and the end of the outputs
        # that begin before k. Both grow with k, so a range of inputs touches a range of outputs.
        inputs = np.arange(nonzero.shape[1] + 1)
        self._begin = np.searchsorted(self._last, inputs, side="left").tolist()
        self._end = np.searchsorted(self._first, inputs - 1, side="right").tolist()

    def outputs_of(self, start: int, stop: int) -> slice | None:
        """Return the outputs that touch the inputs from start to stop, or None for no outputs."""
        begin, end = self._begin[start], self._end[stop]
        return slice(begin, end) if begin < end and start < stop else None

    def inputs_of(self, start: int, stop: int) -> slice:
        """Return the inputs that the outputs from start to stop touch."""
        return slice(int(self._first[start]), int(self._last[stop - 1]) + 1)

    def products(
        self, inputs: NDArray[np.float32], outputs: slice
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield weights[outputs] @ inputs a few rows at a time, with the rows of the product.

        Args:
            inputs: (n, k), a row for each input that the outputs touch.
            outputs: rows of the matrix.
        """
        origin = int(self._first[outputs.start])
        for start in range(outputs.start, outputs.stop, _BLOCK):
            stop = min(start + _BLOCK, outputs.stop)
            touched = self.inputs_of(start, stop)
            rows = inputs[touched.start - origin : touched.stop - origin]
            product_rows = slice(start - outputs.start, stop - outputs.start)
            yield product_rows, self._weights[start:stop, touched] @ rows


@lru_cache(maxsize=16)
def _cached_band(low: int, padded: int, unpadded: int, original: int) -> _Band:
    return _Band(_two_bilinear_passes(low, padded, unpadded, original).numpy())


def _two_bilinear_passes(low: int, padded: int, unpadded: int, original: int) -> Tensor:
    """Return the matrix (original, low) of both passes along one axis, without the padding.

    The weights come from interpolating an identity matrix. torch rounds positions in float32, and
    computing them in float64 would give slightly different weights.
    """
    identity = torch.eye(low)[None, None]
    enlarged = F.interpolate(identity, (padded, low), mode="bilinear", align_corners=False)
    return F.interpolate(
        enlarged[:, :, :unpadded], (original, low), mode="bilinear", align_corners=False
    )[0, 0].contiguous()
