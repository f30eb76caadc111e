"""Pillow's bilinear resizing to the last bit, on any device.

SAM's images are resized by Pillow on the CPU, which takes as long as a GPU needs for half of its
encoder. Pillow's arithmetic for 8-bit channels is whole numbers: filter weights in units of 2**-22,
along one axis, rounded to 8 bits, then along the other. Whole numbers are the same everywhere.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Size = tuple[int, int]  # (height, width) in pixels

_FRACTION_BITS = 22
ROWS_FIRST, COLUMNS_FIRST = (1, 0), (0, 1)


class PillowResize:
    """Image.resize(.., BILINEAR) without Pillow, once it is known to be the same.

    Which axis goes first depends on the sizes and on Pillow's version, and rounding in between shows
    it. So the first images of each size are resized by both: what agrees with Pillow is used from
    then on, and where nothing does, Pillow.
    """

    def __init__(self) -> None:
        self._axes: dict[tuple[Size, Size], tuple[int, int] | None] = {}

    def __call__(self, image: NDArray[np.uint8], size: Size, device: torch.device) -> Tensor:
        """uint8 (H, W, 3) to uint8 (height, width, 3) on the device."""
        height, width = size
        key = (image.shape[:2], size)
        axes = self._axes.get(key)
        if axes is not None:
            return resize_bilinear(torch.from_numpy(image).to(device), size, axes)
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        pillows = torch.from_numpy(np.array(resized)).to(device)
        if key not in self._axes:
            self._compare(key, torch.from_numpy(image).to(device), pillows)
        return pillows

    def _compare(self, key: tuple[Size, Size], image: Tensor, pillows: Tensor) -> None:
        one_axis = any(old == new for old, new in zip(*key, strict=True))
        orders = [ROWS_FIRST] if one_axis else [ROWS_FIRST, COLUMNS_FIRST]
        same = [
            axes for axes in orders if torch.equal(resize_bilinear(image, key[1], axes), pillows)
        ]
        if len(same) == 1:
            self._axes[key] = same[0]
        elif not same:
            self._axes[key] = None  # Pillow alone
        # Where both agree the image, a flat one perhaps, tells nothing.


def resize_bilinear(image: Tensor, size: Size, axes: tuple[int, int]) -> Tensor:
    """uint8 (H, W, C) to uint8 (height, width, C), along one axis after the other."""
    for axis in axes:
        if image.shape[axis] != size[axis]:
            image = _resize_axis(image, axis, size[axis])
    return image


def _resize_axis(image: Tensor, axis: int, length: int) -> Tensor:
    places, weights = (
        torch.from_numpy(table).to(image.device) for table in _taps(image.shape[axis], length)
    )
    total = torch.full((), 1 << (_FRACTION_BITS - 1), dtype=torch.int32, device=image.device)
    shape = [1] * image.ndim
    shape[axis] = length
    for place, weight in zip(places, weights, strict=True):
        total = total + image.index_select(axis, place).int() * weight.view(shape)
    return (total >> _FRACTION_BITS).clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _taps(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(taps, new) places in the old axis and their weights; a triangle as wide as a new pixel."""
    scale = old / new
    reach = max(scale, 1.0)
    taps = math.ceil(reach) * 2 + 1
    center = (np.arange(new) + 0.5) * scale
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((center + reach + 0.5).astype(np.int64), old)
    places = first + np.arange(taps)[:, None]
    weights = np.maximum(0, 1 - np.abs((places - center + 0.5) * (1 / reach)))
    weights = np.where(places < last, weights, 0.0)
    weights = weights / weights.sum(axis=0)
    whole = (weights * (1 << _FRACTION_BITS) + 0.5).astype(np.int32)
    return np.minimum(places, old - 1), whole
