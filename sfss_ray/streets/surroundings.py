"""The static surroundings of a street: sky, ground, lots on both sides, backdrop and own bonnet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sfss_ray.streets.appearance import draw
from sfss_ray.streets.brush import Brush, ground_quad, rectangle, side_quads
from sfss_ray.streets.buildings import paint_building
from sfss_ray.streets.figures import paint_bush, paint_tree

_KERB = 0.12  # height in metres


@dataclass(frozen=True)
class Layout:
    """The layout of a street in metres; the road is centred on x = 0."""

    lanes: int
    lane_width: float
    sidewalk: tuple[float, float]  # width on the left and on the right
    verge: tuple[float, float]  # grass between sidewalk and lots
    end: float  # depth at which the street ends
    crossing: float | None  # depth at which a crossing road begins, or None

    @property
    def road_half(self) -> float:
        """Half of the width of the road."""
        return self.lanes * self.lane_width / 2

    def lot_edge(self, side: int) -> float:
        """Return the signed x at which the lots begin; `side` is -1 (left) or 1 (right)."""
        index = (side + 1) // 2
        return side * (self.road_half + self.sidewalk[index] + self.verge[index])


def sample_layout(brush: Brush) -> Layout:
    """Draw the cross-section and the length of a street."""
    rng, style = brush.rng, brush.style
    verge = [rng.uniform(1.5, 4.5) * (rng.random() < style.verge_chance) for _ in range(2)]
    return Layout(
        lanes=int(rng.choice(style.lanes)),
        lane_width=draw(rng, style.lane_width),
        sidewalk=(draw(rng, style.sidewalk), draw(rng, style.sidewalk)),
        verge=(verge[0], verge[1]),
        end=rng.uniform(70, 170),
        crossing=rng.uniform(14, 45) if rng.random() < 0.35 else None,
    )


def paint_sky(brush: Brush) -> int:
    """Fill the canvas with sky and return its part id."""
    material = brush.appearance.shared("rim")
    sky = brush.front_part(brush.canvas.new_instance(), "sky", material, 300.0)
    brush.canvas.ids[:] = sky
    return sky


def paint_ground(brush: Brush, layout: Layout) -> None:
    """Paint terrain up to the horizon, sidewalks with kerbs, and the road with its marks."""
    canvas, half, far = brush.canvas, layout.road_half, layout.end + 60
    terrain = brush.ground_part(
        canvas.new_instance(), "terrain", brush.appearance.shared("terrain")
    )
    canvas.fill(terrain, ground_quad(-800, 800, 0.0, 800))
    for side in (-1, 1):
        width, verge = layout.sidewalk[(side + 1) // 2], layout.verge[(side + 1) // 2]
        instance = canvas.new_instance()
        paving = brush.ground_part(instance, "sidewalk", brush.appearance.shared("sidewalk"))
        # Without a verge the paving continues below the lots.
        reach = width if verge else width + 12
        canvas.fill(paving, ground_quad(side * half, side * (half + reach), 0.0, far))
    road = canvas.new_instance()
    asphalt = brush.ground_part(road, "road", brush.appearance.shared("road"))
    canvas.fill(asphalt, ground_quad(-half, half, 0.0, far))
    if layout.crossing is not None:
        near, depth = layout.crossing, 2.4 * layout.lane_width
        canvas.fill(asphalt, ground_quad(-90, 90, near, near + depth))
    _paint_patches(brush, road, layout)
    _paint_marks(brush, road, layout)
    _paint_kerbs(brush, layout, far)


def _paint_patches(brush: Brush, road: int, layout: Layout) -> None:
    """Paint repaired or worn areas of the road."""
    rng = brush.rng
    for _ in range(rng.integers(0, 4)):
        patch = brush.ground_part(road, "road", brush.material("road"))
        x, z = rng.uniform(-layout.road_half, layout.road_half), rng.uniform(3, 40)
        half_width, length = rng.uniform(0.5, 1.5), rng.uniform(1, 12)
        x0, x1 = np.clip((x - half_width, x + half_width), -layout.road_half, layout.road_half)
        brush.canvas.fill(patch, ground_quad(x0, x1, z, z + length))


def _paint_marks(brush: Brush, road: int, layout: Layout) -> None:
    """Paint lane marks: dashed, or a double line between the directions of a wide road."""
    rng, canvas = brush.rng, brush.canvas
    mark = brush.ground_part(road, "road", brush.material("mark"))
    dash, phase = rng.choice([3.0, 4.5, 6.0]), rng.uniform(0, 6)
    for line in range(1, layout.lanes):
        x = -layout.road_half + line * layout.lane_width
        if line * 2 == layout.lanes and layout.lanes > 2:
            for shift in (-0.15, 0.15):
                canvas.fill(mark, ground_quad(x + shift - 0.06, x + shift + 0.06, 0, layout.end))
            continue
        for z in np.arange(phase - 3, min(layout.end, 80), 2 * dash):
            canvas.fill(mark, ground_quad(x - 0.08, x + 0.08, z, z + dash))
    if rng.random() < 0.5:
        for side in (-1, 1):
            x = side * (layout.road_half - 0.3)
            canvas.fill(mark, ground_quad(x - 0.06, x + 0.06, 0, layout.end))
    if layout.crossing is not None:
        _paint_zebra(brush, mark, layout, layout.crossing - 4)


def _paint_zebra(brush: Brush, mark: int, layout: Layout, z: float) -> None:
    """Paint a zebra crossing at depth `z`."""
    for x in np.arange(-layout.road_half + 0.4, layout.road_half - 0.4, 1.0):
        brush.canvas.fill(mark, ground_quad(x, x + 0.5, z, z + 2.8))


def _paint_kerbs(brush: Brush, layout: Layout, far: float) -> None:
    """Paint kerbs along both sides, interrupted by a crossing road."""
    crossing = layout.crossing
    depth = 2.4 * layout.lane_width
    spans = [(0.0, far)] if crossing is None else [(0.0, crossing), (crossing + depth, far)]
    for side in (-1, 1):
        instance = brush.canvas.new_instance()
        stone = brush.appearance.shared("kerb")
        face = brush.side_part(instance, "sidewalk", stone, side * layout.road_half)
        top = brush.ground_part(instance, "sidewalk", stone)
        x = side * layout.road_half
        for span_near, span_far in spans:
            brush.canvas.fill(top, ground_quad(x, x + side * 0.2, span_near, span_far, _KERB))
            brush.canvas.fill(face, side_quads(x, span_near, span_far, 0.0, _KERB))


def paint_backdrop(brush: Brush, layout: Layout) -> None:
    """Paint the far end of the street: trees, houses, or nothing."""
    rng = brush.rng
    backdrop = rng.integers(3)
    z = layout.end + 50
    if backdrop == 0:
        for x in np.arange(-120, 120, 9.0):
            paint_bush(brush, x + rng.uniform(-4, 4), z, rng.uniform(5, 14), 16)
    elif backdrop == 1:
        for x in np.arange(-110, 110, 16.0):
            instance, surface = brush.canvas.new_instance(), brush.material("facade")
            part = brush.front_part(instance, "building", surface, z)
            height = rng.uniform(7, 32)
            brush.canvas.fill(part, rectangle(x, 0, z, 15.0, height))


def paint_lots(brush: Brush, layout: Layout) -> None:
    """Paint buildings, parks and gaps on both sides, far ones first."""
    for side in (-1, 1):
        for use, near, far in reversed(_sample_lots(brush, layout)):
            x = layout.lot_edge(side)
            if use == "building":
                paint_building(brush, x, near, far)
            elif use == "park":
                _paint_park(brush, x, near, far)


def _sample_lots(brush: Brush, layout: Layout) -> list[tuple[str, float, float]]:
    """Draw (use, near, far) of the lots of one side, near ones first."""
    rng, weights = brush.rng, brush.style.lots
    uses, chances = list(weights), np.array(list(weights.values()))
    depth, lots = rng.uniform(-6, 2), []
    while depth < layout.end:
        use, length = rng.choice(uses, p=chances / chances.sum()), rng.uniform(9, 24)
        crossing = layout.crossing
        # A lot ends before a crossing road, and the next one begins behind it.
        if crossing is not None and depth < crossing + 10 and depth + length > crossing - 1:
            length = max(crossing - 1 - depth, 0.0)
            if length > 3:
                lots.append((use, depth, depth + length))
            depth = crossing + 10
            continue
        lots.append((use, depth, depth + length))
        depth += length
    return lots


def _paint_park(brush: Brush, x: float, near: float, far: float) -> None:
    """Paint grass with trees and bushes behind a fence, a wall or nothing."""
    rng, side = brush.rng, np.sign(x)
    lawn = brush.ground_part(
        brush.canvas.new_instance(), "terrain", brush.appearance.shared("terrain")
    )
    brush.canvas.fill(lawn, ground_quad(x, x + side * 40, near, far))
    for _ in range(rng.integers(1, 5)):
        z = rng.uniform(max(near, 2.0), max(far, 4.0))
        if rng.random() < 0.6:
            paint_tree(brush, x + side * rng.uniform(2, 9), z, rng.uniform(4, 11))
        else:
            height = rng.uniform(0.8, 2.5)
            paint_bush(brush, x + side * rng.uniform(1.5, 6), z, height, 2.5 * height)
    choice = rng.random()
    if choice < 0.5:
        _paint_fence(brush, x, near, far)
    elif choice < 0.9:
        _paint_wall(brush, x, near, far)


def _paint_fence(brush: Brush, x: float, near: float, far: float) -> None:
    """Paint bars and rails in front of a panel that may look like the terrain behind."""
    rng, instance = brush.rng, brush.canvas.new_instance()
    height, surface = rng.uniform(1.0, 2.2), brush.appearance.shared("fence")
    brush.canvas.cast_shadow(np.array([(x, near), (x, far)]), height)
    background = brush.appearance.shared("terrain" if rng.random() < 0.5 else "fence")
    panel = brush.side_part(instance, "fence", background, x)
    brush.canvas.fill(panel, side_quads(x, near, far, 0.0, height))
    bars = brush.side_part(instance, "fence", surface, x)
    starts = np.arange(max(near, 0.8), far, rng.uniform(0.25, 0.6))
    brush.canvas.fill(bars, side_quads(x, starts, starts + 0.12, 0.0, height))
    for low in (0.12, height - 0.15):
        brush.canvas.fill(bars, side_quads(x, near, far, low, low + 0.15))


def _paint_wall(brush: Brush, x: float, near: float, far: float) -> None:
    """Paint a low wall with a cap."""
    instance, height = brush.canvas.new_instance(), brush.rng.uniform(1.2, 2.8)
    brush.canvas.cast_shadow(np.array([(x, near), (x, far)]), height)
    brick = brush.side_part(instance, "wall", brush.appearance.shared("wall"), x)
    brush.canvas.fill(brick, side_quads(x, near, far, 0.0, height))
    cap = brush.side_part(instance, "wall", brush.appearance.shared("kerb"), x)
    brush.canvas.fill(cap, side_quads(x, near, far, height - 0.14, height))


def paint_bonnet(brush: Brush) -> None:
    """Paint the bonnet of the camera's car at the lower edge, which is ignored in the labels."""
    rows, columns = brush.canvas.ids.shape
    hood = brush.front_part(0, "void", brush.appearance.shared("hood"), 1.0)
    rise = brush.rng.uniform(0.04, 0.1) * rows
    x = np.linspace(-1, 1, columns)
    edge = rows - rise * np.sqrt(np.clip(1 - (0.95 * x) ** 2, 0, 1)) * 1.2
    brush.canvas.ids[np.arange(rows)[:, None] >= edge] = hood
