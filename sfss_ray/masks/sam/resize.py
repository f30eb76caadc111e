"""Pillow's bilinear resizing on any device, equal to the last bit.

segment_anything resizes images with Pillow on the CPU, which takes as long as half of the encoder on a
GPU. For 8-bit channels Pillow computes with integers: filter weights in units of 2**-22 along one
axis, rounding to 8 bits, then the other axis. Integer arithmetic gives the same result on any device.
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
    """Image.resize(.., BILINEAR) without Pillow, once both were seen to agree.

    The axis that goes first depends on the sizes and on Pillow's version, and the rounding in between
    makes the order visible. The first images of each size are therefore resized by both. The order
    that agrees with Pillow is used from then on. If no order agrees, Pillow itself is used.
    """

    def __init__(self) -> None:
        self._axes: dict[tuple[Size, Size], tuple[int, int] | None] = {}

    def __call__(self, image: NDArray[np.uint8], size: Size, device: torch.device) -> Tensor:
        """Resize uint8 (H, W, 3) to uint8 (height, width, 3) on the device."""
        height, width = size
        key = (image.shape[:2], size)
        axes = self._axes.get(key)
        if axes is not None:
            return resize_bilinear(torch.from_numpy(image).to(device), size, axes)
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        reference = torch.from_numpy(np.array(resized)).to(device)
        if key not in self._axes:
            self._compare(key, torch.from_numpy(image).to(device), reference)
        return reference

    def _compare(self, key: tuple[Size, Size], image: Tensor, reference: Tensor) -> None:
        """Record which order of the axes gives Pillow's result, if this image can tell."""
        one_axis = any(old == new for old, new in zip(*key, strict=True))
        orders = [ROWS_FIRST] if one_axis else [ROWS_FIRST, COLUMNS_FIRST]
        equal_orders = [
            axes for axes in orders if torch.equal(resize_bilinear(image, key[1], axes), reference)
        ]
        if len(equal_orders) == 1:
            self._axes[key] = equal_orders[0]
        elif not equal_orders:
            self._axes[key] = None  # use Pillow
        # If both orders agree, the image (a flat one, for instance) cannot tell them apart.


def resize_bilinear(image: Tensor, size: Size, axes: tuple[int, int]) -> Tensor:
    """Resize uint8 (H, W, C) to uint8 (height, width, C), one axis after the other."""
    for axis in axes:
        if image.shape[axis] != size[axis]:
            image = _resize_axis(image, axis, size[axis])
    return image


def _resize_axis(image: Tensor, axis: int, length: int) -> Tensor:
    positions, weights = (
        torch.from_numpy(table).to(image.device)
        for table in _filter_taps(image.shape[axis], length)
    )
    total = torch.full((), 1 << (_FRACTION_BITS - 1), dtype=torch.int32, device=image.device)
    shape = [1] * image.ndim
    shape[axis] = length
    for position, weight in zip(positions, weights, strict=True):
        total = total + image.index_select(axis, position).int() * weight.view(shape)
    return (total >> _FRACTION_BITS).clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _filter_taps(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return positions (taps, new) in the old axis and their weights.

    The filter is a triangle with the half-width of a new pixel, or of an old one if that is larger.
    """
    scale = old / new
    reach = max(scale, 1.0)
    taps = math.ceil(reach) * 2 + 1
    center = (np.arange(new) + 0.5) * scale
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((center + reach + 0.5).astype(np.int64), old)
    positions = first + np.arange(taps)[:, None]
    weights = np.maximum(0, 1 - np.abs((positions - center + 0.5) * (1 / reach)))
    weights = np.where(positions < last, weights, 0.0)
    weights = weights / weights.sum(axis=0)
    fixed_point = (weights * (1 << _FRACTION_BITS) + 0.5).astype(np.int32)
    return np.minimum(positions, old - 1), fixed_point
