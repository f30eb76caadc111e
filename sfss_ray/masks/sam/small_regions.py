"""Removal of small holes and islands from masks."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def remove_small_regions(mask: NDArray[np.bool_], min_area: int) -> tuple[NDArray[np.bool_], bool]:
    """Fill holes and remove islands of fewer than `min_area` pixels.

    If all islands are that small, the largest one stays.

    Args:
        mask: bool (H, W).
        min_area: in pixels.

    Returns:
        The cleaned mask, and whether it differs from the input.
    """
    holes, hole_areas = _components(~mask)
    small_hole = np.append(False, hole_areas < min_area)
    filled = mask | small_hole[holes] if small_hole.any() else mask
    islands, island_areas = _components(filled)
    small = island_areas < min_area
    if not small.any():
        return filled, bool(small_hole.any())
    if small.all():
        small[np.argmax(island_areas)] = False
    return np.append(False, ~small)[islands], True


def _components(mask: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return labels (H, W) of 8-connected components, 0 = background, and areas of labels 1, 2, ..."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return np.asarray(labels), np.asarray(stats)[1:, cv2.CC_STAT_AREA]
