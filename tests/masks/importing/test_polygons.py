"""Polygons have the pixels of pycocotools, and of a loop over its published algorithm."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from pycocotools import mask as coco

from sfss_ray.errors import DataError
from sfss_ray.masks.bank.run_lengths import decode, to_coco_string
from sfss_ray.masks.importing.polygons import polygon_counts

SIZE = (13, 17)


def reference(polygons: list[list[float]], size: tuple[int, int]) -> str:
    """Return the string of pycocotools, as its annToRLE makes it."""
    return coco.merge(coco.frPyObjects(polygons, *size))["counts"].decode()


def looped(polygon: list[float], height: int, width: int) -> np.ndarray:
    """Return the mask of one polygon, point by point as rleFrPoly of maskApi.c does."""
    x = [math.trunc(5 * value + 0.5) for value in polygon[0::2]]
    y = [math.trunc(5 * value + 0.5) for value in polygon[1::2]]
    points = []
    for xs, ys, xe, ye in zip(x, y, x[1:] + x[:1], y[1:] + y[:1], strict=True):
        dx, dy = abs(xe - xs), abs(ye - ys)
        flip = xs > xe if dx >= dy else ys > ye
        if flip:
            xs, ys, xe, ye = xe, ye, xs, ys
        for d in range(max(dx, dy) + 1):
            t = max(dx, dy) - d if flip else d
            if dx >= dy:
                slope = (ye - ys) / dx if dx else 0.0
                points.append((t + xs, math.trunc(ys + slope * t + 0.5)))
            else:
                points.append((math.trunc(xs + (xe - xs) / dy * t + 0.5), t + ys))
    toggles = np.zeros(height * width + 1, int)
    for (u0, v0), (u1, v1) in itertools.pairwise(points):
        column = ((u1 if u1 < u0 else u1 - 1) + 0.5) / 5 - 0.5
        if u0 == u1 or column != math.floor(column) or not 0 <= column <= width - 1:
            continue
        row = math.ceil(min(max((min(v0, v1) + 0.5) / 5 - 0.5, 0), height))
        toggles[int(column) * height + row] += 1
    return (np.cumsum(toggles)[:-1] % 2 == 1).reshape(width, height).T


def random_polygon(rng: np.random.Generator, size: tuple[int, int], margin: float) -> list[float]:
    corners = rng.uniform(-margin, 1 + margin, (rng.integers(3, 9), 2)) * (size[1], size[0])
    rounding = rng.integers(4)
    if rounding < 2:
        corners = corners.round(rounding)
    if rounding == 3:
        corners = corners.repeat(2, axis=0)
    return corners.ravel().tolist()


@pytest.mark.parametrize("margin", [0.0, 0.4, 3.0], ids=["inside", "across the edges", "outside"])
def test_pixels_are_those_of_pycocotools(margin):
    rng = np.random.default_rng(0)
    for _ in range(700):
        size = (int(rng.integers(1, 30)), int(rng.integers(1, 30)))
        polygons = [random_polygon(rng, size, margin) for _ in range(rng.integers(1, 4))]
        counts = polygon_counts(polygons, size)
        assert to_coco_string(counts) == reference(polygons, size), (size, polygons)
        union = np.logical_or.reduce([looped(polygon, *size) for polygon in polygons])
        assert (decode(counts, size) == union).all(), (size, polygons)


def test_a_polygon_around_the_image_covers_it():
    assert polygon_counts([[-9, -9, 99, -9, 99, 99, -9, 99]], SIZE).tolist() == [0, 13 * 17]


def test_a_polygon_beside_the_image_covers_nothing():
    for polygon in ([20, 0, 30, 0, 30, 9], [-9, 0, -2, 0, -2, 9], [0, -9, 9, -9, 9, -2]):
        assert polygon_counts([[float(v) for v in polygon]], SIZE).tolist() == [13 * 17]


def test_fewer_than_three_corners_cover_nothing():
    triangle = [2.0, 2.0, 9.0, 2.0, 9.0, 9.0]
    assert polygon_counts([], SIZE).tolist() == [13 * 17]
    assert polygon_counts([[], [1.0, 1.0], [1.0, 1.0, 9.0, 9.0]], SIZE).tolist() == [13 * 17]
    assert to_coco_string(polygon_counts([[1.0, 1.0], triangle], SIZE)) == reference(
        [triangle], SIZE
    )


@pytest.mark.parametrize(
    ("polygon", "reason"),
    [
        ([1.0, 2.0, 3.0], r"shape \(3,\)"),
        ([[1.0, 2.0], [3.0, 4.0]], r"shape \(2, 2\)"),
        ([1.0, 2.0, float("nan"), 4.0, 5.0, 6.0], "not finite"),
        ([1.0, 2.0, "x", 4.0, 5.0, 6.0], "not a number"),
        ([1.0, 2.0, [3.0], 4.0, 5.0, 6.0], "not a number"),
        ([0.0, 0.0, 1e12, 0.0, 9.0, 9.0], "reaches from 0 to 1e.12, far out of any image"),
        ([0.0, 0.0, 1e300, 0.0, 9.0, 9.0], "far out of any image"),
    ],
)
def test_impossible_polygons_are_refused(polygon, reason):
    with pytest.raises(DataError, match=reason):
        polygon_counts([polygon], SIZE)
