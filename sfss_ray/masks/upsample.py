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

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

# Rows of the band that are multiplied together: fewer cost more calls, more multiply more zeros.
_BLOCK = 64


@dataclass(frozen=True)
class Region:
    """Part of an enlarged mask.

    Attributes:
        logits: float32 (w, h), transposed: runs of an RLE go down the columns of the image.
        top, left: position of the part in the image, in pixels.
    """

    logits: NDArray[np.float32]
    top: int
    left: int


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

    def region(self, low: Tensor, above: float) -> Region | None:
        """The part of the mask that holds every pixel with a logit greater than `above`.

        Args:
            low: float32 logits on the CPU, (h, w) as `low_size`.
            above: logits not greater than this may be left out.

        Returns:
            The part, or None when no pixel can be greater than `above`.
        """
        high = low.numpy() > above
        y = self._rows.outputs_of(np.flatnonzero(high.any(axis=1)))
        x = self._columns.outputs_of(np.flatnonzero(high.any(axis=0)))
        if y is None or x is None:
            return None
        taps = self._columns.inputs_of(x)
        tall = self._rows.multiply(low[:, taps], y)
        enlarged = self._columns.multiply(tall.T, x, first_input=taps.start)
        return Region(enlarged.numpy(), top=y.start, left=x.start)


class _Band:
    """A matrix (outputs, inputs) whose nonzero weights form a band that only moves to the right."""

    def __init__(self, weights: Tensor) -> None:
        used = weights.numpy() != 0
        self._weights = weights
        self._first = used.argmax(axis=1)
        self._last = used.shape[1] - 1 - used[:, ::-1].argmax(axis=1)

    def outputs_of(self, inputs: NDArray[np.int64]) -> slice | None:
        """Outputs that touch the interval from the first to the last of the growing `inputs`."""
        if len(inputs) == 0:
            return None
        start = int(np.searchsorted(self._last, inputs[0], side="left"))
        stop = int(np.searchsorted(self._first, inputs[-1], side="right"))
        return slice(start, stop) if start < stop else None

    def inputs_of(self, outputs: slice) -> slice:
        return slice(int(self._first[outputs.start]), int(self._last[outputs.stop - 1]) + 1)

    def multiply(self, values: Tensor, outputs: slice, first_input: int = 0) -> Tensor:
        """weights[outputs] @ values, where values' row 0 belongs to input `first_input`."""
        n_rows = outputs.stop - outputs.start
        result = values.new_empty((n_rows, values.shape[1]))
        for start in range(0, n_rows, _BLOCK):
            stop = min(start + _BLOCK, n_rows)
            block = slice(outputs.start + start, outputs.start + stop)
            taps = self.inputs_of(block)
            rows = values[taps.start - first_input : taps.stop - first_input]
            torch.mm(self._weights[block, taps], rows, out=result[start:stop])
        return result


@lru_cache(maxsize=16)
def _band(low: int, padded: int, seen: int, out: int) -> _Band:
    return _Band(_two_bilinear_passes(low, padded, seen, out))


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
