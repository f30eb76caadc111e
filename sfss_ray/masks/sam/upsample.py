"""Upsampling of low-resolution mask logits to image pixels, only where the mask can be.

SAM enlarges its logits twice with bilinear interpolation: from the decoder's size to the padded
model input, then, with the padding cut off, to the image. Both passes are linear and act on rows
and columns separately, so together they are

    full = A_rows @ low @ A_columns^T

with one matrix for each axis that has at most a few neighbouring weights in a row (a band). The
weights of a row are not negative and sum to 1: a pixel's value never exceeds the largest low value
that it touches. So pixels that touch no low value above a threshold need not be computed when only
values above that threshold matter.
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

# Outputs that are made together: fewer cost more calls, more multiply more zeros of the band and
# do not stay in a cache.
_BLOCK = 64


@dataclass(frozen=True)
class Region:
    """Part of an enlarged mask, in image pixels.

    Attributes:
        rows, columns: where the part lies in the image.
    """

    rows: slice
    columns: slice
    _tall: NDArray[np.float32]  # (low-resolution columns, rows)
    _band: "_Band"

    @property
    def shape(self) -> tuple[int, int]:
        """(w, h), transposed as the strips are."""
        return self.columns.stop - self.columns.start, self._tall.shape[1]

    def strips(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Some columns (counted from the region's first) and their logits (n, h), all in turn.

        Columns come first, because runs of an RLE go down the columns of the image. A large mask is
        never whole in memory, and a strip is still in the caches when it is compared.
        """
        return self._band.products(self._tall, self.columns)


class RegionUpsampler:
    """Enlarges masks of images (or crops) of one size; matrices of recent sizes are kept.

    Args:
        low_size: (h, w) of the decoder's logits.
        padded_size: side in pixels of the square model input.
        input_size: (h, w) of the image as the model sees it, without padding.
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
        self._rows, self._columns = (_band(low, padded_size, seen, out) for low, seen, out in axes)

    def region(self, low: NDArray[np.float32], above: float) -> Region | None:
        """The part of the mask that holds every pixel with a logit greater than `above`.

        Args:
            low: float32 logits, (h, w) as `low_size` or what low_size_seen leaves of it.
            above: logits not greater than this may be left out.

        Returns:
            The part, or None when no pixel can be greater than `above`.
        """
        left, top, width, height = cv2.boundingRect((low > above).view(np.uint8))
        y = self._rows.outputs_of(top, top + height)
        x = self._columns.outputs_of(left, left + width)
        if y is None or x is None:
            return None
        taps = self._columns.inputs_of(x.start, x.stop)
        seen = low[self._rows.inputs_of(y.start, y.stop), taps]
        tall = np.empty((taps.stop - taps.start, y.stop - y.start), dtype=np.float32)
        for part, rows in self._rows.products(seen, y):
            tall[:, part] = rows.T
        return Region(y, x, tall, self._columns)


def low_size_seen(
    low_size: tuple[int, int], padded_size: int, input_size: tuple[int, int] | None
) -> tuple[int, int]:
    """(h, w) of the low values that pixels of the image touch; all others belong to padding.

    Args:
        low_size: (h, w) of the decoder's logits.
        padded_size: side in pixels of the square model input.
        input_size: (h, w) of the image as the model sees it, without padding; None for no padding.
    """
    # With a whole factor between the sizes the positions are the same with fewer rows.
    if input_size is None or any(padded_size % side for side in low_size):
        return low_size
    rows, columns = (
        min(side, -(-seen * side // padded_size) + 1)
        for side, seen in zip(low_size, input_size, strict=True)
    )
    return rows, columns


class _Band:
    """A matrix (outputs, inputs) whose nonzero weights form a band that only moves to the right."""

    def __init__(self, weights: NDArray[np.float32]) -> None:
        used = weights != 0
        self._weights = weights
        self._first = used.argmax(axis=1)
        self._last = used.shape[1] - 1 - used[:, ::-1].argmax(axis=1)
        # Outputs in growing order: the first with a tap at input k or later, and the one behind the
        # last that begins before k.
        inputs = np.arange(used.shape[1] + 1)
        self._begin = np.searchsorted(self._last, inputs, side="left").tolist()
        self._end = np.searchsorted(self._first, inputs - 1, side="right").tolist()

    def outputs_of(self, start: int, stop: int) -> slice | None:
        """Outputs that touch the inputs from start to stop; None where there are none."""
        begin, end = self._begin[start], self._end[stop]
        return slice(begin, end) if begin < end and start < stop else None

    def inputs_of(self, start: int, stop: int) -> slice:
        """Inputs that the outputs from start to stop touch."""
        return slice(int(self._first[start]), int(self._last[stop - 1]) + 1)

    def products(
        self, values: NDArray[np.float32], outputs: slice
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """weights[outputs] @ values a few rows at a time, each with its place in the product.

        Args:
            values: (n, k), a row for each input that the outputs touch.
            outputs: which rows of the matrix.
        """
        origin = int(self._first[outputs.start])
        for start in range(outputs.start, outputs.stop, _BLOCK):
            stop = min(start + _BLOCK, outputs.stop)
            taps = self.inputs_of(start, stop)
            rows = values[taps.start - origin : taps.stop - origin]
            place = slice(start - outputs.start, stop - outputs.start)
            yield place, self._weights[start:stop, taps] @ rows


@lru_cache(maxsize=16)
def _band(low: int, padded: int, seen: int, out: int) -> _Band:
    return _Band(_two_bilinear_passes(low, padded, seen, out).numpy())


def _two_bilinear_passes(low: int, padded: int, seen: int, out: int) -> Tensor:
    """Matrix (out, low) of both passes along one axis, with the padding cut off in between.

    Interpolating an identity matrix gives the weights with torch's own rounding of the positions,
    which is in float32 and would not be met by computing them anew in float64.
    """
    identity = torch.eye(low)[None, None]
    enlarged = F.interpolate(identity, (padded, low), mode="bilinear", align_corners=False)
    return F.interpolate(enlarged[:, :, :seen], (out, low), mode="bilinear", align_corners=False)[
        0, 0
    ].contiguous()
