"""Camera and canvas: polygons given in metres are painted as part ids.

The canvas keeps one map of part ids and one table row per part. Labels, instances, colours and
depth all follow from that map, so they are aligned by construction.

World axes: x to the right, y up from the road, z along the road away from the camera (metres).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

NEAR = 0.7  # metres; points nearer than this are moved to this depth
IGNORE = 255
_SHIFT = 4  # fractional bits of the polygon corners given to OpenCV
_LIMIT = 1 << 15  # largest corner coordinate in pixels, so that fixed point cannot overflow

TEXTURES = ("smooth", "grain", "brick", "slab", "leaf", "plank")


@dataclass(frozen=True)
class Camera:
    """Pinhole camera looking along the road; distances in metres, image values in pixels."""

    rows: int
    columns: int
    focal: float
    vanish_x: float
    vanish_y: float
    roll: float
    height: float
    offset: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """Image positions (..., 2) as (x, y) of world points (..., 3)."""
        scale = self.focal / np.maximum(points[..., 2], NEAR)
        x = (points[..., 0] - self.offset) * scale
        y = (self.height - points[..., 1]) * scale
        cos, sin = math.cos(self.roll), math.sin(self.roll)
        flat = np.empty((*x.shape, 2))
        flat[..., 0] = x * cos - y * sin + self.vanish_x
        flat[..., 1] = x * sin + y * cos + self.vanish_y
        return np.minimum(np.maximum(flat, -_LIMIT), _LIMIT)

    def rays(self) -> tuple[np.ndarray, np.ndarray]:
        """Slopes right and down, each float32 (rows, columns), of the ray through each pixel."""
        focal = np.float32(self.focal)
        x = (np.arange(self.columns, dtype=np.float32) - np.float32(self.vanish_x)) / focal
        y = (np.arange(self.rows, dtype=np.float32) - np.float32(self.vanish_y))[:, None] / focal
        cos, sin = np.float32(np.cos(self.roll)), np.float32(np.sin(self.roll))
        return x * cos + y * sin, y * cos - x * sin

    def ground_plane(self) -> tuple[float, float, float]:
        """Inverse depth on the ground as coefficients of (slope right, slope down, 1)."""
        return 0.0, 1.0 / self.height, 0.0

    def side_plane(self, x: float) -> tuple[float, float, float]:
        """Inverse depth on the upright plane along the road at `x`."""
        gap = x - self.offset
        return 1.0 / (gap if abs(gap) > 0.1 else 0.1), 0.0, 0.0

    def front_plane(self, z: float) -> tuple[float, float, float]:
        """Inverse depth on the upright plane across the road at `z`."""
        return 0.0, 0.0, 1.0 / max(z, NEAR)


@dataclass(frozen=True)
class Material:
    """Surface: RGB albedo in [0, 1], texture name, its contrast and its texels per metre."""

    colour: tuple[float, float, float]
    texture: str = "smooth"
    contrast: float = 0.0
    density: float = 8.0


@dataclass(frozen=True)
class PartTable:
    """One row per part id (row 0: nothing painted)."""

    instance: np.ndarray
    label: np.ndarray
    colour: np.ndarray
    plane: np.ndarray
    texture: np.ndarray
    contrast: np.ndarray
    density: np.ndarray
    lit: np.ndarray
    ground: np.ndarray


class Canvas:
    """Painter's canvas: what is painted later hides what was painted earlier.

    `ids` and the masks hold what was painted once `finish` has been called.
    """

    def __init__(self, camera: Camera, shadow: tuple[float, float] | None) -> None:
        """`shadow`: ground offset (x, z) of the shadow of a point 1 m high, None without sun."""
        self.camera = camera
        self.ids = np.zeros((camera.rows, camera.columns), np.int32)
        self.sun_mask = np.zeros((camera.rows, camera.columns), np.uint8)
        self.contact_mask = np.zeros((camera.rows, camera.columns), np.uint8)
        self._shadow = shadow
        self._instances = 0
        self._pending: list[tuple[int, np.ndarray, int, int]] = []
        self._shades: list[tuple[np.ndarray, np.ndarray]] = []
        self._rows: list[tuple] = [(0, IGNORE, (0.0, 0.0, 0.0), (0.0, 0.0, 1.0), 0, 0, 1, 0, False)]

    def instance(self) -> int:
        """A new instance id."""
        self._instances += 1
        return self._instances

    def part(
        self,
        instance: int,
        label: int,
        material: Material,
        plane: tuple[float, float, float],
        lit: float = 0.5,
        ground: bool = False,
    ) -> int:
        """A new part of `instance`; `lit` in [0, 1] is the share of sun light it receives."""
        texture = TEXTURES.index(material.texture)
        self._rows.append(
            (
                instance,
                label,
                material.colour,
                plane,
                texture,
                material.contrast,
                material.density,
                lit,
                ground,
            )
        )
        return len(self._rows) - 1

    def table(self) -> PartTable:
        """The rows of all parts made so far."""
        columns = list(zip(*self._rows, strict=True))
        kinds = (np.int32, np.uint8, "f4", "f4", np.int32, "f4", "f4", "f4", bool)
        return PartTable(*(np.asarray(c, k) for c, k in zip(columns, kinds, strict=True)))

    def fill(self, part: int, points: np.ndarray) -> None:
        """Paint one polygon (k, 3), or n disjoint ones (n, k, 3), given in metres."""
        if points.size:
            count = 1 if points.ndim == 2 else len(points)
            self._pending.append((part, points.reshape(-1, 3), count, 0))

    def fill_each(self, part: int, points: np.ndarray) -> None:
        """Paint n polygons (n, k, 3) that may overlap."""
        self._pending.extend((part, outline, 1, 0) for outline in points)

    def stroke(self, part: int, points: np.ndarray, width: float) -> None:
        """Paint the line through `points` (k, 3), `width` metres thick, at least a pixel."""
        depth = max(float(points[0, 2]), NEAR)
        thickness = min(max(round(width * self.camera.focal / depth), 1), 200)
        self._pending.append((part, points, 1, thickness))

    def finish(self) -> None:
        """Carry out what was asked for; projecting all corners at once is several times faster."""
        for (part, _, count, thickness), corners in self._placed(self._pending):
            polygons = list(corners.reshape(count, -1, 2))
            if thickness:
                cv2.polylines(self.ids, polygons, False, part, thickness, cv2.LINE_8, _SHIFT)
            else:
                cv2.fillPoly(self.ids, polygons, part, cv2.LINE_8, _SHIFT)
        for (mask, _), corners in self._placed(self._shades):
            cv2.fillConvexPoly(mask, cv2.convexHull(corners), 255, cv2.LINE_8, _SHIFT)
        self._pending.clear()
        self._shades.clear()

    def _placed(self, jobs: list[tuple]) -> Iterator[tuple[tuple, np.ndarray]]:
        """Each job with the fixed-point image positions of its points, which it holds second."""
        if not jobs:
            return
        corners = _fixed(self.camera.project(np.concatenate([job[1] for job in jobs])))
        start = 0
        for job in jobs:
            stop = start + len(job[1])
            yield job, corners[start:stop]
            start = stop

    def cast_shadow(self, footprint: np.ndarray, height: float, base: float = 0.0) -> None:
        """Shade the ground below and beside an upright body on `footprint` (k, 2) as (x, z)."""
        if self._shadow is not None:
            offset = np.asarray(self._shadow)
            body = np.concatenate([footprint + offset * base, footprint + offset * height])
            self._shade(self.sun_mask, body)

    def touch_ground(self, footprint: np.ndarray) -> None:
        """Darken the ground where a body on `footprint` (k, 2) as (x, z) keeps the sky out."""
        self._shade(self.contact_mask, footprint)

    def _shade(self, mask: np.ndarray, flat: np.ndarray) -> None:
        points = np.zeros((len(flat), 3))
        points[:, ::2] = flat
        self._shades.append((mask, points))


def _fixed(corners: np.ndarray) -> np.ndarray:
    return np.rint(corners * (1 << _SHIFT)).astype(np.int32)
