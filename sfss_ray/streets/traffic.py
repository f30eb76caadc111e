"""Vehicles, people, street furniture and street trees."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sfss_ray.streets.appearance import draw
from sfss_ray.streets.brush import Brush
from sfss_ray.streets.figures import (
    paint_bare_pole,
    paint_bicycle,
    paint_bush,
    paint_cyclist,
    paint_lamp,
    paint_person,
    paint_sign,
    paint_traffic_light,
    paint_tree,
)
from sfss_ray.streets.surroundings import Layout
from sfss_ray.streets.vehicles import paint_vehicle, sample_body

PaintJob = tuple[float, Callable[[], None]]  # depth, and the function that paints the object
_MAX_DEPTH = 75.0  # metres; objects farther away would be too small to see


def paint_street_life(brush: Brush, layout: Layout) -> None:
    """Paint all objects between the lots, far ones first."""
    jobs = _vehicles(brush, layout) + _furniture(brush, layout) + _people(brush, layout)
    for _, paint in sorted(jobs, key=lambda job: -job[0]):
        paint()


def _vehicle(brush: Brush, x: float, z: float, heading: float) -> PaintJob:
    """Sample a vehicle; long ones are moved back, since `z` is the middle of their length."""
    label = str(brush.rng.choice(["car", "truck", "bus"], p=[0.8, 0.11, 0.09]))
    body = sample_body(brush.rng, label)
    z = z + (4.0 if label != "car" else 0.0)
    return z, lambda: paint_vehicle(brush, body, x, z, heading)


def _vehicles(brush: Brush, layout: Layout) -> list[PaintJob]:
    """Sample the traffic of each lane, parked cars, and perhaps a vehicle on the crossing road."""
    rng, style = brush.rng, brush.style
    jobs = []
    for lane in range(layout.lanes):
        x = -layout.road_half + (lane + 0.5) * layout.lane_width
        heading = np.pi if lane < layout.lanes / 2 else 0.0
        z = rng.uniform(6, 40)
        while z < _MAX_DEPTH:
            varied_heading = heading + 0.04 * rng.standard_normal()
            jobs.append(_vehicle(brush, x + 0.25 * rng.standard_normal(), z, varied_heading))
            z += 13 + rng.exponential(100 / draw(rng, style.traffic) / 2)
    for side in (-1, 1):
        jobs += _parked(brush, layout, side)
    if layout.crossing is not None and rng.random() < 0.6:
        z, heading = layout.crossing + rng.choice([2.0, 5.5]), rng.choice([-1, 1]) * np.pi / 2
        jobs.append(_vehicle(brush, rng.uniform(-12, 12), z, heading))
    return jobs


def _parked(brush: Brush, layout: Layout, side: int) -> list[PaintJob]:
    """Sample a row of cars along the kerb, half on the sidewalk."""
    rng, jobs = brush.rng, []
    if rng.random() > brush.style.parked_chance:
        return jobs
    x, z = side * (layout.road_half + 0.1), rng.uniform(4, 14)
    while z < 60:
        is_clear = layout.crossing is None or abs(z - layout.crossing - 4) > 9
        if is_clear and rng.random() < 0.8:
            body = sample_body(rng, "car")
            heading = 0.0 if side > 0 else np.pi * rng.integers(2)
            paint = _paint_later(paint_vehicle, brush, body, x, z, heading)
            jobs.append((z, paint))
        z += rng.uniform(5.2, 7.5)
    return jobs


def _paint_later(paint: Callable, *arguments) -> Callable[[], None]:
    """Bind arguments now, so that loop variables keep their current values."""
    return lambda: paint(*arguments)


def _on_sidewalk(brush: Brush, layout: Layout, side: int, margin: float = 0.6) -> float:
    """Return a random x on the sidewalk of one side."""
    width = layout.sidewalk[(side + 1) // 2]
    return side * (layout.road_half + brush.rng.uniform(margin, max(width - 0.3, margin + 0.1)))


def _people(brush: Brush, layout: Layout) -> list[PaintJob]:
    """Sample people on sidewalks and zebra crossings, cyclists, and parked bicycles."""
    rng, style, jobs = brush.rng, brush.style, []
    for side in (-1, 1):
        for _ in range(rng.poisson(draw(rng, style.people))):
            x, z = _on_sidewalk(brush, layout, side), 6 + rng.gamma(1.6, 7.5)
            for companion in range(rng.choice([1, 1, 2])):
                person_x, person_z = x + 0.6 * companion, z + 0.3 * companion
                jobs.append((person_z, _paint_later(paint_person, brush, person_x, person_z)))
    if layout.crossing is not None and layout.crossing > 10:
        for _ in range(rng.integers(0, 4)):
            x, z = rng.uniform(-1, 1) * layout.road_half, layout.crossing - rng.uniform(1.5, 4)
            jobs.append((z, _paint_later(paint_person, brush, x, z)))
    for _ in range(rng.poisson(draw(rng, style.cyclists))):
        x, z = rng.uniform(-0.9, 0.9) * layout.road_half, rng.uniform(7, 22)
        across = bool(rng.random() < 0.5)
        jobs.append((z, _paint_later(paint_cyclist, brush, x, z, across)))
    for _ in range(rng.poisson(0.7)):
        x, z = _on_sidewalk(brush, layout, int(rng.choice([-1, 1]))), rng.uniform(6, 16)
        jobs.append((z, _paint_later(paint_bicycle, brush, x, z, True)))
    return jobs


def _furniture(brush: Brush, layout: Layout) -> list[PaintJob]:
    """Sample lamps, trees, signs, poles and traffic lights of both sides."""
    rng, style, jobs = brush.rng, brush.style, []
    for side in (-1, 1):
        kerb = side * (layout.road_half + 0.7)
        gap = draw(rng, style.lamp_spacing)
        lamps = np.arange(rng.uniform(5, gap), _MAX_DEPTH, gap)
        jobs += [(z, _paint_later(paint_lamp, brush, kerb, z, -side)) for z in lamps]
        if rng.random() < 0.65:
            jobs += _tree_row(brush, layout, side)
        for _ in range(rng.poisson(draw(rng, style.signs) / 2)):
            z = rng.uniform(8, 32)
            jobs.append((z, _paint_later(paint_sign, brush, kerb + 0.2 * side, z)))
        for _ in range(rng.poisson(1.0)):
            z = rng.uniform(5, 30)
            jobs.append((z, _paint_later(paint_bare_pole, brush, kerb, z)))
        if layout.crossing is not None or rng.random() < 0.4:
            z = rng.uniform(9, 30) if layout.crossing is None else layout.crossing - 0.8
            jobs.append((z, _paint_later(paint_traffic_light, brush, kerb, z, -side)))
    return jobs


def _tree_row(brush: Brush, layout: Layout, side: int) -> list[PaintJob]:
    """Sample trees and bushes along the verge, or trees alone on the sidewalk."""
    rng, jobs = brush.rng, []
    edge = layout.lot_edge(side)
    verge = layout.verge[(side + 1) // 2]
    x = edge - side * (verge / 2 if verge else 0.6)
    gap, height = draw(rng, brush.style.tree_spacing), rng.uniform(4, 9)
    for z in np.arange(rng.uniform(5, 5 + gap), _MAX_DEPTH, gap):
        tree_height = height * rng.uniform(0.8, 1.2)
        jobs.append((z, _paint_later(paint_tree, brush, x, z, tree_height)))
        if verge and rng.random() < 0.5:
            jobs.append(
                (z + 2, _paint_later(paint_bush, brush, x, z + 2, rng.uniform(0.6, 1.4), 2.5))
            )
    return jobs
