"""A camera, and a canvas on which polygons in metres are painted as part ids.

The canvas holds one map of part ids and one table row per part. Labels, instances, colours and
depth are all derived from that map, so they are aligned by construction.

World axes: x to the right, y up from the road, z along the road away from the camera (metres).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

NEAR = 0.7  # metres; nearer points are moved to this depth
IGNORE = 255
_SHIFT = 4  # fractional bits of the polygon corners passed to OpenCV
_LIMIT = 1 << 15  # largest corner coordinate in pixels, so that fixed point cannot overflow

TEXTURES = ("smooth", "grain", "brick", "slab", "leaf", "plank")


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along the road; distances in metres, image positions in pixels."""

    rows: int
    columns: int
    focal: float
    vanish_x: float  # vanishing point of the road
    vanish_y: float
    roll: float  # radians
    height: float
    offset: float  # x of the camera

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return image positions (..., 2) as (x, y) of world points (..., 3)."""
        scale = self.focal / np.maximum(points[..., 2], NEAR)
        x = (points[..., 0] - self.offset) * scale
        y = (self.height - points[..., 1]) * scale
        cos, sin = math.cos(self.roll), math.sin(self.roll)
        positions = np.empty((*x.shape, 2))
        positions[..., 0] = x * cos - y * sin + self.vanish_x
        positions[..., 1] = x * sin + y * cos + self.vanish_y
        return np.minimum(np.maximum(positions, -_LIMIT), _LIMIT)

    def rays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the slopes right and down, each float32 (rows, columns), of the ray of each pixel."""
        focal = np.float32(self.focal)
        x = (np.arange(self.columns, dtype=np.float32) - np.float32(self.vanish_x)) / focal
        y = (np.arange(self.rows, dtype=np.float32) - np.float32(self.vanish_y))[:, None] / focal
        cos, sin = np.float32(np.cos(self.roll)), np.float32(np.sin(self.roll))
        return x * cos + y * sin, y * cos - x * sin

    def ground_plane(self) -> tuple[float, float, float]:
        """Return the inverse depth on the ground as coefficients of (slope right, slope down, 1)."""
        return 0.0, 1.0 / self.height, 0.0

    def side_plane(self, x: float) -> tuple[float, float, float]:
        """Return the inverse depth on the upright plane along the road at `x`."""
        gap = x - self.offset
        return 1.0 / (gap if abs(gap) > 0.1 else 0.1), 0.0, 0.0

    def front_plane(self, z: float) -> tuple[float, float, float]:
        """Return the inverse depth on the upright plane across the road at `z`."""
        return 0.0, 0.0, 1.0 / max(z, NEAR)


@dataclass(frozen=True)
class Material:
    """The material of a surface."""

    colour: tuple[float, float, float]  # RGB albedo in [0, 1]
    texture: str = "smooth"  # one of TEXTURES
    contrast: float = 0.0  # of the texture
    density: float = 8.0  # texels per metre


@dataclass(frozen=True)
class PartTable:
    """One row per part id; row 0 stands for unpainted pixels."""

    instance: np.ndarray
    label: np.ndarray
    colour: np.ndarray
    plane: np.ndarray
    texture: np.ndarray
    contrast: np.ndarray
    density: np.ndarray
    lit: np.ndarray  # share of the sunlight
    ground: np.ndarray  # whether the part is on the ground


class Canvas:
    """A canvas of part ids: later polygons cover earlier ones.

    `ids` and the masks are complete once `finish` has been called.
    """

    def __init__(self, camera: Camera, shadow: tuple[float, float] | None) -> None:
        """Create an empty canvas.

        Args:
            camera: Projects world points onto the canvas.
            shadow: Ground offset (x, z) of the shadow of a point 1 m high, or None without sun.
        """
        self.camera = camera
        self.ids = np.zeros((camera.rows, camera.columns), np.int32)
        self.sun_mask = np.zeros((camera.rows, camera.columns), np.uint8)
        self.contact_mask = np.zeros((camera.rows, camera.columns), np.uint8)
        self._shadow = shadow
        self._instance_count = 0
        # (part, points, number of polygons, line thickness or 0) and (mask, points)
        self._pending_shapes: list[tuple[int, np.ndarray, int, int]] = []
        self._pending_shades: list[tuple[np.ndarray, np.ndarray]] = []
        self._rows: list[tuple] = [(0, IGNORE, (0.0, 0.0, 0.0), (0.0, 0.0, 1.0), 0, 0, 1, 0, False)]

    def new_instance(self) -> int:
        """Return a new instance id."""
        self._instance_count += 1
        return self._instance_count

    def new_part(
        self,
        instance: int,
        label: int,
        material: Material,
        plane: tuple[float, float, float],
        lit: float = 0.5,
        ground: bool = False,
    ) -> int:
        """Return the id of a new part.

        Args:
            instance: The instance that the part belongs to; 0 for none.
            label: Train id.
            material: Colour and texture.
            plane: Inverse depth as coefficients of (slope right, slope down, 1).
            lit: Share of the sunlight that the part receives, in [0, 1].
            ground: Whether the part is on the ground and can be in a shadow.
        """
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
        """Return the rows of all parts so far."""
        columns = list(zip(*self._rows, strict=True))
        dtypes = (np.int32, np.uint8, "f4", "f4", np.int32, "f4", "f4", "f4", bool)
        return PartTable(*(np.asarray(c, dtype) for c, dtype in zip(columns, dtypes, strict=True)))

    def fill(self, part: int, points: np.ndarray) -> None:
        """Paint one polygon (k, 3) or n disjoint polygons (n, k, 3), in metres."""
        if points.size:
            count = 1 if points.ndim == 2 else len(points)
            self._pending_shapes.append((part, points.reshape(-1, 3), count, 0))

    def fill_each(self, part: int, points: np.ndarray) -> None:
        """Paint n polygons (n, k, 3) that may overlap."""
        self._pending_shapes.extend((part, outline, 1, 0) for outline in points)

    def stroke(self, part: int, points: np.ndarray, width: float) -> None:
        """Paint the line through `points` (k, 3), `width` metres thick, at least a pixel."""
        depth = max(float(points[0, 2]), NEAR)
        thickness = min(max(round(width * self.camera.focal / depth), 1), 200)
        self._pending_shapes.append((part, points, 1, thickness))

    def finish(self) -> None:
        """Draw all pending shapes; projecting all their corners at once is several times faster."""
        for (part, _, count, thickness), corners in self._project_all(self._pending_shapes):
            polygons = list(corners.reshape(count, -1, 2))
            if thickness:
                cv2.polylines(self.ids, polygons, False, part, thickness, cv2.LINE_8, _SHIFT)
            else:
                cv2.fillPoly(self.ids, polygons, part, cv2.LINE_8, _SHIFT)
        for (mask, _), corners in self._project_all(self._pending_shades):
            cv2.fillConvexPoly(mask, cv2.convexHull(corners), 255, cv2.LINE_8, _SHIFT)
        self._pending_shapes.clear()
        self._pending_shades.clear()

    def _project_all(self, shapes: list[tuple]) -> Iterator[tuple[tuple, np.ndarray]]:
        """Yield each shape with the fixed-point image positions of its points, its second entry."""
        if not shapes:
            return
        corners = _to_fixed_point(self.camera.project(np.concatenate([s[1] for s in shapes])))
        start = 0
        for shape in shapes:
            stop = start + len(shape[1])
            yield shape, corners[start:stop]
            start = stop

    def cast_shadow(self, footprint: np.ndarray, height: float, base: float = 0.0) -> None:
        """Shade the ground below and beside an upright body on a footprint (k, 2) as (x, z)."""
        if self._shadow is not None:
            offset = np.asarray(self._shadow)
            body = np.concatenate([footprint + offset * base, footprint + offset * height])
            self._shade(self.sun_mask, body)

    def touch_ground(self, footprint: np.ndarray) -> None:
        """Darken the ground below a body on a footprint (k, 2) as (x, z), which hides the sky."""
        self._shade(self.contact_mask, footprint)

    def _shade(self, mask: np.ndarray, ground_points: np.ndarray) -> None:
        points = np.zeros((len(ground_points), 3))
        points[:, ::2] = ground_points
        self._pending_shades.append((mask, points))


def _to_fixed_point(corners: np.ndarray) -> np.ndarray:
    return np.rint(corners * (1 << _SHIFT)).astype(np.int32)
