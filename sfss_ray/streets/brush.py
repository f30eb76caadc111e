"""A brush with the canvas, appearance and random numbers of a scene, and simple shapes to paint."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from sfss_ray.streets.appearance import Appearance
from sfss_ray.streets.canvas import IGNORE, Canvas, Material
from sfss_ray.streets.styles import Style

LABEL = {
    "road": 0, "sidewalk": 1, "building": 2, "wall": 3, "fence": 4, "pole": 5,
    "traffic light": 6, "traffic sign": 7, "vegetation": 8, "terrain": 9, "sky": 10,
    "person": 11, "rider": 12, "car": 13, "truck": 14, "bus": 15, "bicycle": 18, "void": IGNORE,
}  # fmt: skip
"""Class name -> Cityscapes train id; void is ignored."""


@dataclass(frozen=True)
class Brush:
    """The shared arguments of all painting functions."""

    canvas: Canvas
    appearance: Appearance
    rng: np.random.Generator

    @property
    def style(self) -> Style:
        """The style of the scene."""
        return self.appearance.style

    def material(self, surface: str, colour: tuple[float, float, float] | None = None) -> Material:
        """Draw a new variant of `surface`, or a smooth material if a colour is given."""
        variant = self.appearance.material(surface, self.rng)
        return variant if colour is None else Material(colour, "smooth", 0.0)

    def ground_part(self, instance: int, label: str, material: Material) -> int:
        """Return a new part on the ground."""
        plane = self.canvas.camera.ground_plane()
        lit = self.appearance.lit((0, 1, 0))
        return self.canvas.new_part(instance, LABEL[label], material, plane, lit, ground=True)

    def side_part(self, instance: int, label: str, material: Material, x: float) -> int:
        """Return a new part on the upright plane along the road at `x`, facing the road."""
        plane = self.canvas.camera.side_plane(x)
        lit = self.appearance.lit((-np.sign(x), 0, 0))
        return self.canvas.new_part(instance, LABEL[label], material, plane, lit)

    def front_part(
        self, instance: int, label: str, material: Material, z: float, lit: float | None = None
    ) -> int:
        """Return a new part at depth `z` that faces the camera.

        `lit` replaces its share of the sunlight.
        """
        share = 0.35 + 0.5 * self.appearance.lit((0, 0, -1)) if lit is None else lit
        plane = self.canvas.camera.front_plane(z)
        return self.canvas.new_part(instance, LABEL[label], material, plane, share)


def rectangle(x: float, y: float, z: float, width: float, height: float) -> np.ndarray:
    """Return (4, 3) corners of an upright rectangle across the road; (x, y) is its lower middle."""
    half = width / 2
    corners = [(x - half, y), (x + half, y), (x + half, y + height), (x - half, y + height)]
    return np.array([(a, b, z) for a, b in corners])


def ellipse(
    x: float, y: float, z: float, half_width: float, half_height: float, corners: int = 12
) -> np.ndarray:
    """Return (corners, 3) corners of an upright ellipse across the road, starting at its top."""
    return unit_circle(corners) * (half_width, half_height, 0.0) + (x, y, z)


@lru_cache(maxsize=16)
def unit_circle(corners: int) -> np.ndarray:
    """Return (corners, 3) corners of a circle of radius 1 m across the road, starting at its top."""
    angle = np.pi / 2 + np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle), np.zeros(corners)], -1)


def ground_quad(x0: float, x1: float, z0: float, z1: float, y: float = 0.0) -> np.ndarray:
    """Return (4, 3) corners of a level rectangle."""
    return np.array([(x0, y, z0), (x1, y, z0), (x1, y, z1), (x0, y, z1)])


def side_quads(x: float, z0: ArrayLike, z1: ArrayLike, y0: ArrayLike, y1: ArrayLike) -> np.ndarray:
    """Return (n, 4, 3) corners of upright rectangles along the road; bounds broadcast to (n,)."""
    z0, z1, y0, y1 = np.broadcast_arrays(*np.atleast_1d(z0, z1, y0, y1))
    quads = np.empty((len(z0), 4, 3))
    quads[..., 0] = x
    quads[:, 0, 1] = quads[:, 1, 1] = y0
    quads[:, 2, 1] = quads[:, 3, 1] = y1
    quads[:, 0, 2] = quads[:, 3, 2] = z0
    quads[:, 1, 2] = quads[:, 2, 2] = z1
    return quads


def footprint(x: float, z: float, width: float, length: float) -> np.ndarray:
    """Return (4, 2) ground corners as (x, z) of a box centred at (x, z)."""
    x0, x1, z0, z1 = x - width / 2, x + width / 2, z - length / 2, z + length / 2
    return np.array([(x0, z0), (x1, z0), (x1, z1), (x0, z1)])
