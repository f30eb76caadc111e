"""Buildings along the road: facades with windows, shops, trims and roofs."""

from __future__ import annotations

import numpy as np

from sfss_ray.streets.brush import LABEL, Brush, side_quads
from sfss_ray.streets.canvas import Material


def paint_building(brush: Brush, x: float, z0: float, z1: float) -> None:
    """Paint a building with its facade at `x` between the depths `z0` < `z1`."""
    rng, style = brush.rng, brush.style
    instance = brush.canvas.new_instance()
    floors = int(rng.integers(*style.floors, endpoint=True))
    storey, base = rng.uniform(2.8, 3.5), rng.uniform(3.2, 4.2)
    top = base + storey * (floors - 1)
    _cast_shadow(brush, x, z0, z1, top)
    wall = brush.material("facade")
    _paint_end(brush, instance, wall, x, z0, top)
    if rng.random() < style.roof_chance:
        _paint_roof(brush, instance, x, z0, z1, top)
    facade = brush.side_part(instance, "building", wall, x)
    brush.canvas.fill(facade, side_quads(x, z0, z1, 0.0, top))
    trim = brush.side_part(instance, "building", brush.material("trim"), x)
    brush.canvas.fill(trim, side_quads(x, z0, z1, top - 0.35, top))
    if rng.random() < 0.5:
        brush.canvas.fill(trim, side_quads(x, z0, z1, base - 0.2, base))
    _paint_windows(brush, instance, x, (z0, z1), (base, storey, floors - 1), trim)
    _paint_ground_floor(brush, instance, x, z0, z1, base)


def _cast_shadow(brush: Brush, x: float, z0: float, z1: float, top: float) -> None:
    """Cast the shadow of a building 8 m deep."""
    edge = np.array([(x, z0), (x, z1), (x + np.sign(x) * 8, z1), (x + np.sign(x) * 8, z0)])
    brush.canvas.cast_shadow(edge, top)


def _paint_end(
    brush: Brush, instance: int, wall: Material, x: float, z0: float, top: float
) -> None:
    """Paint the wall that faces the camera, visible beside a gap or above a lower neighbour."""
    lit = brush.appearance.lit((0, 0, -1))
    end = brush.front_part(instance, "building", wall, z0, lit)
    far = x + np.sign(x) * 14
    corners = [(x, 0, z0), (far, 0, z0), (far, top, z0), (x, top, z0)]
    brush.canvas.fill(end, np.array(corners))
    glass = brush.front_part(instance, "building", brush.material("window"), z0, lit)
    columns, rows = np.meshgrid(np.arange(2.0, 12.0, 3.5), np.arange(4.5, top - 1.5, 3.2))
    x0 = x + np.sign(x) * columns.ravel()
    x1, low = x0 + np.sign(x) * 1.1, rows.ravel()
    flat = np.full(x0.shape, z0)
    quads = [(x0, low), (x1, low), (x1, low + 1.5), (x0, low + 1.5)]
    brush.canvas.fill(glass, np.stack([np.stack([a, b, flat], -1) for a, b in quads], 1))


def _paint_roof(brush: Brush, instance: int, x: float, z0: float, z1: float, top: float) -> None:
    """Paint a pitched roof as the gable and the slope towards the road."""
    side, rise = np.sign(x), brush.rng.uniform(1.8, 4.0)
    surface = brush.material("roof")
    roof = brush.canvas.new_part(
        instance,
        LABEL["building"],
        surface,
        brush.canvas.camera.side_plane(x + side * 2),
        brush.appearance.lit((-0.7 * side, 0.7, 0)),
    )
    ridge = x + side * 4
    slope = [(x, top, z0), (x, top, z1), (ridge, top + rise, z1), (ridge, top + rise, z0)]
    gable = [(x, top, z0), (ridge, top + rise, z0), (x + side * 8, top, z0)]
    brush.canvas.fill(roof, np.array(gable))
    brush.canvas.fill(roof, np.array(slope))


def _paint_windows(
    brush: Brush,
    instance: int,
    x: float,
    span: tuple[float, float],
    storeys: tuple[float, float, int],
    trim: int,
) -> None:
    """Paint a grid of windows on the upper storeys.

    Args:
        brush: Canvas, appearance and random numbers.
        instance: Instance id of the building.
        x: Position of the facade.
        span: (near, far) depth of the facade.
        storeys: (height of the first, height of each, count).
        trim: Part id of window frames.
    """
    rng = brush.rng
    base, storey, count = storeys
    pitch = rng.uniform(1.8, 3.4)
    columns = int((span[1] - span[0]) / pitch)
    if columns < 1 or count < 1:
        return
    bay = (span[1] - span[0]) / columns
    width, height = bay * rng.uniform(0.4, 0.8), storey * rng.uniform(0.45, 0.65)
    z, y = np.meshgrid(
        span[0] + bay * (np.arange(columns) + 0.5), base + storey * np.arange(count) + 0.8
    )
    z, y = z.ravel(), y.ravel()
    if rng.random() < 0.6:
        frame = side_quads(
            x, z - width / 2 - 0.12, z + width / 2 + 0.12, y - 0.15, y + height + 0.1
        )
        brush.canvas.fill(trim, frame)
    quads = side_quads(x, z - width / 2, z + width / 2, y, y + height)
    # Windows come in two materials, such as lit and dark.
    is_first = rng.random(len(quads)) < rng.uniform(0.5, 1.0)
    for chosen in (is_first, ~is_first):
        glass = brush.side_part(instance, "building", brush.material("window"), x)
        brush.canvas.fill(glass, quads[chosen])


def _paint_ground_floor(
    brush: Brush, instance: int, x: float, z0: float, z1: float, base: float
) -> None:
    """Paint shop windows or apartment windows, with doors."""
    rng = brush.rng
    pitch = rng.uniform(2.5, 5.0)
    starts = np.arange(z0 + 0.5, z1 - pitch + 0.5, pitch)
    if not len(starts):
        return
    shop = rng.random() < 0.55
    low, high = (0.5, base - 0.9) if shop else (1.1, base - 0.8)
    door = rng.random(len(starts)) < 0.25
    glass = brush.side_part(instance, "building", brush.material("shop"), x)
    brush.canvas.fill(glass, side_quads(x, starts, starts + pitch * 0.75, low, high)[~door])
    wood = brush.side_part(instance, "building", brush.material("roof"), x)
    brush.canvas.fill(wood, side_quads(x, starts, starts + 1.2, 0.0, 2.4)[door])
    if shop and rng.random() < 0.6:
        awning = brush.side_part(instance, "building", brush.material("awning"), x)
        brush.canvas.fill(awning, side_quads(x, z0 + 0.4, z1 - 0.4, base - 0.9, base - 0.3))
