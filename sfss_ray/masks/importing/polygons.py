"""Polygons to run lengths, with the pixels that pycocotools gives.

This is the algorithm of rleFrPoly in cocoapi/common/maskApi.c (Lin et al., COCO): corners are rounded
to a grid of five points per pixel, the outline is walked point by point, and each crossing of a pixel
column's centre gives the row where the mask begins or ends. Parts outside the image are cut off.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sfss_ray.errors import DataError
from sfss_ray.masks.bank.run_lengths import Counts

_SCALE = 5
_MAX_POINTS = 20_000_000  # of an outline: a hundred times that of a large image
_Numbers = NDArray[np.number]


def polygon_counts(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Counts:
    """Return the run lengths of the union of polygons, as pycocotools merges them.

    Args:
        polygons: x, y, x, y, ... of each polygon in pixels; fewer than three corners cover no pixel.
        size: (H, W) of the image.

    Returns:
        int64 counts; their sum is H * W.

    Raises:
        DataError: a polygon has an odd number of coordinates, or one that is not finite, or it reaches
            absurdly far out of the image.
    """
    edges = [_polygon_edges(_corners(polygon), size) for polygon in polygons]
    merged = edges[0] if len(edges) == 1 else _union(edges, size[0] * size[1])
    counts = np.diff(merged, prepend=0, append=size[0] * size[1])
    return counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts


def _corners(polygon: Sequence[float]) -> _Numbers:
    """Return the corners of a polygon, float64 (K, 2)."""
    try:
        coordinates = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError("a polygon contains something that is not a number") from error
    if coordinates.ndim != 1 or len(coordinates) % 2:
        raise DataError(
            f"a polygon has the shape {coordinates.shape}: allowed are x, y, x, y, ..., an even number"
        )
    if not np.isfinite(coordinates).all():
        raise DataError("a polygon has a coordinate that is not finite")
    return coordinates.reshape(-1, 2)


def _polygon_edges(corners: _Numbers, size: tuple[int, int]) -> Counts:
    """Return the ascending positions, column by column, at which the mask begins and ends."""
    if len(corners) < 3:
        return np.zeros(0, np.int64)
    height, width = size
    u, v = _outline(corners)
    j = np.flatnonzero(u[1:] != u[:-1]) + 1
    # The crossing lies between two points of the fine grid; only pixel centres are kept.
    column = (np.where(u[j] < u[j - 1], u[j], u[j] - 1) + 0.5) / _SCALE - 0.5
    is_centre = (np.floor(column) == column) & (column >= 0) & (column <= width - 1)
    row = (np.minimum(v[j], v[j - 1])[is_centre] + 0.5) / _SCALE - 0.5
    row = np.ceil(np.clip(row, 0, height)).astype(np.int64)
    positions, repeats = np.unique(
        column[is_centre].astype(np.int64) * height + row, return_counts=True
    )
    # Two crossings at one position cancel each other out, as does one behind the last pixel.
    return positions[(repeats % 2 == 1) & (positions < height * width)]


def _outline(corners: _Numbers) -> tuple[Counts, Counts]:
    """Return u and v, the int64 points of the fine grid along the closed outline."""
    if np.abs(corners).max() > _MAX_POINTS:
        raise _too_far(corners)
    # Like a cast in C, astype rounds towards zero.
    begin = (_SCALE * corners + 0.5).astype(np.int64)
    end = np.roll(begin, -1, axis=0)
    length = np.abs(end - begin)
    is_steep = length[:, 0] < length[:, 1]
    main = is_steep.astype(int)  # the coordinate in which the points of an edge advance by 1
    edges = np.arange(len(begin))
    steps = length[edges, main]
    if steps.sum() > _MAX_POINTS:
        raise _too_far(corners)
    is_flipped = begin[edges, main] > end[edges, main]
    first = np.where(is_flipped[:, None], end, begin)
    last = np.where(is_flipped[:, None], begin, end)
    rise = last[edges, 1 - main] - first[edges, 1 - main]
    slope = rise / np.maximum(steps, 1)

    edge = np.repeat(edges, steps + 1)
    position = np.arange(len(edge)) - np.repeat(np.cumsum(steps + 1) - (steps + 1), steps + 1)
    t = np.where(is_flipped[edge], steps[edge] - position, position)
    along = t + first[edge, main[edge]]
    across = (first[edge, 1 - main[edge]] + slope[edge] * t + 0.5).astype(np.int64)
    steep = is_steep[edge]
    return np.where(steep, across, along), np.where(steep, along, across)


def _too_far(corners: _Numbers) -> DataError:
    return DataError(
        f"a polygon reaches from {corners.min():g} to {corners.max():g}, far out of any image; its"
        " coordinates must be pixels"
    )


def _union(edges: Sequence[Counts], pixels: int) -> Counts:
    """Return the positions at which the union of masks begins and ends."""
    if not edges:
        return np.zeros(0, np.int64)
    closed = [np.append(e, pixels) if len(e) % 2 else e for e in edges]
    positions = np.concatenate(closed)
    change = np.concatenate([1 - 2 * (np.arange(len(e)) % 2) for e in closed])
    distinct, index = np.unique(positions, return_inverse=True)
    depth = np.cumsum(np.bincount(index, change, len(distinct))) if len(distinct) else distinct
    is_inside = depth > 0.5
    changes = is_inside != np.append(False, is_inside[:-1])[: len(is_inside)]
    result = distinct[changes]
    return result[result < pixels]
