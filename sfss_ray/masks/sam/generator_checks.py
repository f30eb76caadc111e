"""Checks of what a caller gives the mask generator; errors have one line."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfss_ray.errors import ConfigError, DataError

FLOATS_ABOVE_ONE = (
    "image is {} with values up to {}; segment_anything takes floating values as 0 to 1: it multiplies"
    " them by 255 and keeps the lowest 8 bits, so the network gets another picture; give uint8 to have"
    " masks of this one"
)


def check_image(image: NDArray[Any]) -> None:
    """DataError unless stock takes an image: (H, W, 3), uint8 or floating."""
    ok = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3
    if not ok or image.size == 0 or not (image.dtype == np.uint8 or _is_floating(image)):
        kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image)
        raise DataError(
            f"image is {kind}; allowed is a numpy array uint8 (H, W, 3), RGB, with at least one "
            "pixel; convert it first"
        )


def _is_floating(image: NDArray[Any]) -> bool:
    return np.issubdtype(image.dtype, np.floating)


def wraps_around(image: NDArray[Any]) -> bool:
    """Whether an image has values that stock does not keep apart from others."""
    return _is_floating(image) and bool(image.max() > 1)


def check_counts(points_per_batch: int, n_layers: int) -> None:
    """ConfigError unless there are points in a batch and a number of crop layers."""
    if points_per_batch < 1 or n_layers < 0:
        raise ConfigError(
            f"points_per_batch is {points_per_batch}, crop_n_layers {n_layers}; allowed "
            "are at least 1 and at least 0; raise the one that is lower"
        )


def check_sides(points_per_side: int, n_layers: int, downscale: int) -> None:
    """ConfigError where a crop layer would have no point."""
    sides = [int(points_per_side / downscale**layer) for layer in range(n_layers + 1)]
    if min(sides) < 1:
        raise ConfigError(
            f"the crop layers would have {sides} points a side; at least 1 is needed; raise "
            "points_per_side or lower crop_n_points_downscale_factor"
        )


def check_point_grids(grids: Sequence[Any], n_layers: int) -> None:
    """ConfigError unless each crop layer has a grid of points (n, 2), an array or nested lists."""
    shapes = [np.shape(grid) for grid in grids]
    if len(shapes) <= n_layers or any(len(s) != 2 or s[0] < 1 or s[1] != 2 for s in shapes):
        raise ConfigError(
            f"point_grids have shapes {shapes}; needed are {n_layers + 1} arrays (one for each "
            "crop layer) of shape (n, 2) with n at least 1"
        )
