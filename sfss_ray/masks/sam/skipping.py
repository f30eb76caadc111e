"""Fewer prompts: points inside a mask of high quality that was already found are not decoded.

This changes the masks. A point inside an object usually gives that object again, but sometimes a part of
it that no other point gives. Of each point only its smallest good mask counts, so a mask of the whole
street does not hide the cars.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfss_ray.masks.bank.run_lengths import Counts, area
from sfss_ray.masks.sam.candidates import (
    CropMasks,
    Thresholds,
    batch_size,
    concatenate,
    find_candidates,
)
from sfss_ray.masks.sam.promptable import EncodedCrop


def find_without_covered(
    crop: EncodedCrop,
    points: NDArray[Any],
    points_per_batch: int,
    thresholds: Thresholds,
    min_iou: float,
) -> CropMasks:
    """Return the masks that pass the thresholds, of points that no earlier mask contains.

    Points are visited in a scattered order, so that neighbours are rarely decoded together.

    Args:
        crop: the encoded crop.
        points: (n, 2) with n at least 1, x and y in pixels of the crop.
        points_per_batch: points decoded at once, at most. Fewer skip more points.
        thresholds: quality filters.
        min_iou: only masks with at least this predicted IoU hide points.
    """
    size = batch_size(crop, points_per_batch)
    remaining = points[np.random.default_rng(0).permutation(len(points))]
    parts: list[CropMasks] = []
    while len(remaining):
        parts.append(find_candidates(crop, remaining[:size], points_per_batch, thresholds))
        remaining = remaining[size:]
        for counts in _smallest_good_masks(parts[-1], crop.size, min_iou):
            remaining = remaining[~contains(counts, remaining, crop.size[0])]
    return concatenate(parts)


def contains(counts: Counts, points: NDArray[Any], height: int) -> NDArray[np.bool_]:
    """Return which points (n, 2), x and y in pixels, lie in a mask of this height."""
    x, y = points.astype(np.int64).T
    # A pixel is in the mask if an odd number of runs ends at or before it.
    runs_before = np.searchsorted(np.cumsum(counts), x * height + y, side="right")
    return runs_before % 2 == 1


def _smallest_good_masks(masks: CropMasks, size: tuple[int, int], min_iou: float) -> list[Counts]:
    """Return run lengths of the smallest mask of each point, among those with the predicted IoU."""
    good = masks.select(masks.predicted_iou >= min_iou)
    runs = good.counts_in_image((0, 0), size)
    smallest: dict[tuple[float, ...], Counts] = {}
    for point, counts in zip(good.points.tolist(), runs, strict=True):
        earlier = smallest.get(tuple(point))
        if earlier is None or area(counts) < area(earlier):
            smallest[tuple(point)] = counts
    return list(smallest.values())
