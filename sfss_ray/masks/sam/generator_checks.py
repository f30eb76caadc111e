"""Checks of the mask generator's parameters and images; each error is one line."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfss_ray.errors import ConfigError, DataError

_OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
_CONVENTIONS = ("segment_anything", "transformers")
_DTYPES = (torch.float32, torch.bfloat16)

FLOATS_ABOVE_ONE = (
    "image is {} with values up to {}; segment_anything takes floating values as 0 to 1: it multiplies"
    " them by 255 and keeps the lowest 8 bits, so the network gets another picture; give uint8 to have"
    " masks of this one"
)


def check_options(output_mode: str, dtype: torch.dtype) -> None:
    """Raise ConfigError unless output mode and dtype are supported."""
    if output_mode not in _OUTPUT_MODES:
        raise ConfigError(f"output_mode is {output_mode!r}; choose one of {_OUTPUT_MODES}")
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype is {dtype}; choose torch.float32 or torch.bfloat16")


def check_convention(convention: str, is_stock: bool) -> None:
    """Raise ConfigError unless the convention exists and the model's reference follows it.

    Args:
        convention: of suppression and points, see conventions.py.
        is_stock: whether the model is segment_anything's Sam.
    """
    if convention not in _CONVENTIONS:
        raise ConfigError(f"convention is {convention!r}; choose one of {_CONVENTIONS}")
    if is_stock and convention != "segment_anything":
        raise ConfigError(
            f"convention is {convention!r}, but the model is segment_anything's Sam, which its"
            " pipeline does not run: leave convention out, or give a model of transformers"
        )


def check_image(image: NDArray[Any]) -> None:
    """Raise DataError unless segment_anything can use an image: (H, W, 3), uint8 or floating."""
    is_rgb = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3
    if not is_rgb or image.size == 0 or not (image.dtype == np.uint8 or _is_floating(image)):
        actual = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image)
        raise DataError(
            f"image is {actual}; allowed is a numpy array uint8 (H, W, 3), RGB, with at least one "
            "pixel; convert it first"
        )


def _is_floating(image: NDArray[Any]) -> bool:
    return np.issubdtype(image.dtype, np.floating)


def wraps_around(image: NDArray[Any]) -> bool:
    """Return whether a floating image has values above 1, which wrap around in segment_anything."""
    return _is_floating(image) and bool(image.max() > 1)


def check_counts(points_per_batch: int, crop_n_layers: int) -> None:
    """Raise ConfigError unless batches have a point and the number of crop layers is not negative."""
    if points_per_batch < 1 or crop_n_layers < 0:
        raise ConfigError(
            f"points_per_batch is {points_per_batch}, crop_n_layers {crop_n_layers}; allowed "
            "are at least 1 and at least 0; raise the one that is lower"
        )


def check_points(
    points_per_side: int | None,
    point_grids: Sequence[Any] | None,
    crop_n_layers: int,
    downscale_factor: int,
) -> None:
    """Raise ConfigError unless one of both is given and each crop layer has a point."""
    if (points_per_side is None) == (point_grids is None):
        raise ConfigError(
            f"points_per_side is {points_per_side} and point_grids is "
            f"{'None' if point_grids is None else 'given'}; give exactly one, and None for the"
            " other"
        )
    if points_per_side is not None:
        _check_sides(points_per_side, crop_n_layers, downscale_factor)
    if point_grids is not None:
        check_point_grids(point_grids, crop_n_layers)


def _check_sides(points_per_side: int, crop_n_layers: int, downscale_factor: int) -> None:
    sides = [int(points_per_side / downscale_factor**layer) for layer in range(crop_n_layers + 1)]
    if min(sides) < 1:
        raise ConfigError(
            f"the crop layers would have {sides} points a side; at least 1 is needed; raise "
            "points_per_side or lower crop_n_points_downscale_factor"
        )


def check_point_grids(grids: Sequence[Any], crop_n_layers: int) -> None:
    """Raise ConfigError unless each crop layer has points (n, 2), as an array or nested lists."""
    shapes = [np.shape(grid) for grid in grids]
    if len(shapes) <= crop_n_layers or any(len(s) != 2 or s[0] < 1 or s[1] != 2 for s in shapes):
        raise ConfigError(
            f"point_grids have shapes {shapes}; needed are {crop_n_layers + 1} arrays (one for each "
            "crop layer) of shape (n, 2) with n at least 1"
        )
