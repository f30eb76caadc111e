"""Place and size of each mask in its image, from the painted runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sfss_ray.masks.bank.painted_runs import PaintedRuns

GEOMETRY_WIDTH = 4
"""Numbers that describe a mask."""
_PIXEL_VARIANCE = 1 / 12  # of a position within one pixel


def mask_geometry(runs: PaintedRuns, num_masks: int) -> NDArray[np.float32]:
    """Return the place and size of each mask, (num_masks + 1, 4) by id, zeros where it has no pixel.

    The columns are the mean row, the spread (standard deviation) of the rows and of the columns, and the
    logarithm of the area. Rows and columns are shares of the image's height and width, the area is a
    share of the image's. So they depend neither on the resolution nor on mirroring.

    Args:
        runs: The whole image, painted.
        num_masks: Masks of the image. Ids are 1 to num_masks.
    """
    height, width = runs.size
    per_column = np.diff(runs.offsets)
    column = np.repeat(np.arange(len(per_column)), per_column)
    top = runs.rows.astype(np.float64)
    # Runs restart in each column, so a run ends where the next begins or at the image's bottom.
    bottom = np.append(top[1:], height)
    bottom[np.append(column[1:] != column[:-1], True)] = height
    pixels = bottom - top
    middle = (top + bottom) / 2

    def total(values: NDArray[np.float64]) -> np.ndarray:
        return np.bincount(runs.ids, weights=values, minlength=num_masks + 1)

    area = total(pixels)
    divisor = np.maximum(area, 1)
    mean_row, mean_column = (
        total(pixels * middle) / divisor,
        total(pixels * (column + 0.5)) / divisor,
    )
    # A run of n pixels is continuous from its top to its bottom: its own variance is n^2 / 12.
    row_square = total(pixels * (middle**2 + pixels**2 * _PIXEL_VARIANCE)) / divisor
    column_square = total(pixels * ((column + 0.5) ** 2 + _PIXEL_VARIANCE)) / divisor
    row_spread = np.sqrt(np.maximum(row_square - mean_row**2, 0)) / height
    column_spread = np.sqrt(np.maximum(column_square - mean_column**2, 0)) / width
    log_area = np.log(divisor / (height * width))
    geometry = np.stack([mean_row / height, row_spread, column_spread, log_area], axis=1)
    geometry[(area == 0) | (np.arange(num_masks + 1) == 0)] = 0
    return geometry.astype(np.float32)
