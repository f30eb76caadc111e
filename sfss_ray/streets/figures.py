"""People, cyclists, trees, bushes and street furniture, painted as upright shapes."""

from __future__ import annotations

import numpy as np

from sfss_ray.streets.brush import Brush, ellipse, footprint, rectangle, unit_circle

_RED, _AMBER, _GREEN, _DARK = (0.95, 0.1, 0.08), (1.0, 0.65, 0.1), (0.1, 0.85, 0.4), (0.1, 0.1, 0.1)
_SIGN_FACES = (
    ((0.85, 0.1, 0.1), (0.95, 0.95, 0.95)),
    ((0.1, 0.25, 0.75), (0.95, 0.95, 0.95)),
    ((0.95, 0.8, 0.1), (0.15, 0.15, 0.15)),
    ((0.9, 0.9, 0.9), (0.2, 0.2, 0.2)),
    ((0.1, 0.45, 0.3), (0.95, 0.95, 0.95)),
)


def paint_person(brush: Brush, x: float, z: float) -> None:
    """Paint a standing or walking pedestrian."""
    rng, instance = brush.rng, brush.canvas.new_instance()
    height = rng.uniform(1.5, 1.92)
    half_width = height * rng.uniform(0.12, 0.15)
    brush.canvas.cast_shadow(footprint(x, z, 0.4, 0.3), height)
    brush.canvas.touch_ground(footprint(x, z, 0.5, 0.4))

    def part(surface: str) -> int:
        return brush.front_part(instance, "person", brush.material(surface), z)

    legs, stride = part("legs"), rng.uniform(0.02, 0.22)
    hip, shoulder = 0.48 * height, 0.83 * height
    for side in (-1, 1):
        foot, top = x + side * stride, x + side * half_width * 0.45
        outline = [(top - 0.09, hip), (top + 0.09, hip), (foot + 0.07, 0), (foot - 0.07, 0)]
        brush.canvas.fill(legs, np.array([(a, b, z) for a, b in outline]))
    cloth, skin = part("cloth"), part("skin")
    swing = rng.uniform(0, 0.15, 2)
    for side, reach in zip((-1, 1), swing, strict=True):
        elbow = x + side * (half_width + 0.04 + reach)
        arm = [(x + side * half_width * 0.9, shoulder), (elbow, 0.65 * height), (elbow, hip)]
        brush.canvas.stroke(cloth, np.array([(a, b, z) for a, b in arm]), 0.1)
    hem = hip - rng.choice([0.02, 0.02, 0.25])
    torso = [(-1, shoulder - 0.06), (-0.6, shoulder), (0.6, shoulder), (1, shoulder - 0.06)]
    torso += [(0.85, hem), (-0.85, hem)]
    brush.canvas.fill(cloth, np.array([(x + a * half_width, b, z) for a, b in torso]))
    _paint_head(brush, part("tyre"), skin, x, z, height)


def _paint_head(brush: Brush, hair: int, skin: int, x: float, z: float, height: float) -> None:
    """Paint a head whose top is at `height`; `hair` and `skin` are part ids."""
    centre = height - 0.13
    brush.canvas.fill(hair, ellipse(x, centre + 0.02, z, 0.11, 0.13))
    brush.canvas.fill(skin, ellipse(x, centre - 0.03, z, 0.09, 0.11))


def paint_cyclist(brush: Brush, x: float, z: float, across: bool) -> None:
    """Paint a bicycle with its rider, along the road or `across` it."""
    bicycle, rider = brush.canvas.new_instance(), brush.canvas.new_instance()
    lean = brush.rng.uniform(0.3, 0.5) if across else 0.06
    brush.canvas.cast_shadow(footprint(x, z, 1.5 if across else 0.4, 0.3), 1.7)
    brush.canvas.touch_ground(footprint(x, z, 1.6 if across else 0.5, 0.5))
    paint_bicycle(brush, x, z, across, bicycle)

    def part(surface: str) -> int:
        return brush.front_part(rider, "rider", brush.material(surface), z)

    legs, cloth = part("legs"), part("cloth")
    spread = 0.12 if across else 0.13
    for side in (-1, 1):
        leg = [(x - lean * 0.4, 0.95), (x + side * spread + 0.1, 0.65), (x + side * spread, 0.28)]
        brush.canvas.stroke(legs, np.array([(a, b, z) for a, b in leg]), 0.15)
    half_width = 0.15 if across else 0.22
    torso = [(-0.4 * lean - half_width, 0.9), (-0.4 * lean + half_width, 0.9)]
    torso += [(0.6 * lean + half_width, 1.45), (0.6 * lean - half_width, 1.45)]
    brush.canvas.fill(cloth, np.array([(x + a, b, z) for a, b in torso]))
    arm = [(x + 0.6 * lean, 1.38), (x + lean + (0.15 if across else 0.2), 1.08)]
    brush.canvas.stroke(cloth, np.array([(a, b, z) for a, b in arm]), 0.1)
    _paint_head(brush, part("frame"), part("skin"), x + 0.7 * lean, z, 1.75)


def paint_bicycle(
    brush: Brush, x: float, z: float, across: bool, instance: int | None = None
) -> None:
    """Paint a bicycle, as a new instance unless one is given."""
    instance = brush.canvas.new_instance() if instance is None else instance
    tyre = brush.front_part(instance, "bicycle", brush.appearance.shared("tyre"), z)
    frame = brush.front_part(instance, "bicycle", brush.material("frame"), z)
    half = 0.53 if across else 0.05
    for side in (-1, 1):
        wheel = ellipse(x + side * half, 0.34, z, 0.32 if across else 0.04, 0.33)
        brush.canvas.stroke(tyre, np.concatenate([wheel, wheel[:1]]), 0.07)
    bars = [(-half, 0.34), (-0.35 * half, 0.85), (0.7 * half, 0.85), (half, 0.34)]
    bars += [(0.0, 0.34), (-0.35 * half, 0.85)]
    brush.canvas.stroke(frame, np.array([(x + a, b, z) for a, b in bars]), 0.07)
    handle = [(x + 0.6 * half - 0.2, 1.02), (x + 0.6 * half + 0.2, 1.02)]
    brush.canvas.stroke(frame, np.array([(a, b, z) for a, b in handle]), 0.06)


def paint_tree(brush: Brush, x: float, z: float, height: float) -> None:
    """Paint a trunk below a crown of leaf clumps, brighter towards the sun."""
    rng, instance = brush.rng, brush.canvas.new_instance()
    stem = height * rng.uniform(0.3, 0.42)
    spread = height * rng.uniform(0.22, 0.34)
    trunk = brush.front_part(instance, "vegetation", brush.appearance.shared("trunk"), z)
    trunk_half = 0.035 * height
    outline = [
        (-trunk_half, 0),
        (trunk_half, 0),
        (0.6 * trunk_half, stem * 1.3),
        (-0.6 * trunk_half, stem * 1.3),
    ]
    brush.canvas.fill(trunk, np.array([(x + a, b, z) for a, b in outline]))
    middle = (stem + height) / 2
    clumps = _clumps(rng, x, middle, spread, (height - stem) / 2, 7)
    _paint_clumps(brush, instance, clumps, z)
    brush.canvas.cast_shadow(footprint(x, z, 2 * spread, 2 * spread), height, stem)
    brush.canvas.cast_shadow(footprint(x, z, 2 * trunk_half, 2 * trunk_half), stem)
    brush.canvas.touch_ground(footprint(x, z, 3 * trunk_half, 3 * trunk_half))


def paint_bush(brush: Brush, x: float, z: float, height: float, width: float) -> None:
    """Paint low leaf clumps on the ground."""
    instance = brush.canvas.new_instance()
    clumps = _clumps(brush.rng, x, height * 0.45, width / 2, height * 0.5, 4)
    _paint_clumps(brush, instance, clumps, z)
    brush.canvas.touch_ground(footprint(x, z, width, 0.8))


def _clumps(
    rng: np.random.Generator, x: float, y: float, half_width: float, half_height: float, count: int
) -> np.ndarray:
    """Return leaf clumps (count, 3) as (x, y, radius) that fill an ellipse."""
    angle, reach = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.25, 0.65, count)
    reach[0] = 0
    radius = rng.uniform(0.4, 0.6, count) * min(half_width, half_height)
    radius[0] = 0.8 * min(half_width, half_height)
    centre_x = x + half_width * reach * np.cos(angle)
    centre_y = y + half_height * reach * np.sin(angle)
    return np.stack([centre_x, centre_y, radius], -1)


def _paint_clumps(brush: Brush, instance: int, clumps: np.ndarray, z: float) -> None:
    """Paint dark clumps, and smaller bright clumps shifted towards the sun."""
    rng, leaf = brush.rng, brush.material("leaf")
    shade = brush.front_part(instance, "vegetation", leaf, z, 0.15)
    light = brush.front_part(instance, "vegetation", leaf, z, 0.75)
    towards_sun = 0.2 * np.array(brush.appearance.sun_direction[:2])
    brush.canvas.fill_each(shade, _ragged(rng, clumps, z, 14))
    lit = clumps[1:] * (1, 1, 0.75)
    lit[:, :2] += towards_sun * clumps[1:, 2:]
    brush.canvas.fill_each(light, _ragged(rng, lit, z, 9))


def _ragged(rng: np.random.Generator, clumps: np.ndarray, z: float, corners: int) -> np.ndarray:
    """Return ragged outlines (n, corners, 3) of leaf clumps (n, 3) at depth `z`."""
    radius = rng.uniform(0.8, 1.2, (len(clumps), corners, 1)) * clumps[:, None, 2:]
    outlines = unit_circle(corners) * radius
    outlines[..., :2] += clumps[:, None, :2]
    outlines[..., 2] += z
    return outlines


def paint_lamp(brush: Brush, x: float, z: float, inwards: float) -> None:
    """Paint a street lamp whose arm points to the road; `inwards` is -1 or 1."""
    instance = brush.canvas.new_instance()
    height = brush.rng.uniform(5.5, 9.0)
    pole = _paint_pole(brush, instance, x, z, height)
    arm = [(x, height, z), (x + inwards * 1.6, height + 0.15, z)]
    brush.canvas.stroke(pole, np.array(arm), 0.12)
    head = brush.front_part(instance, "pole", brush.appearance.shared("rim"), z)
    brush.canvas.fill(head, rectangle(x + inwards * 1.7, height, z, 0.7, 0.22))


def paint_bare_pole(brush: Brush, x: float, z: float) -> None:
    """Paint a bollard or a post."""
    instance = brush.canvas.new_instance()
    _paint_pole(brush, instance, x, z, brush.rng.choice([1.0, 1.1, 4.5]))


def _paint_pole(brush: Brush, instance: int, x: float, z: float, height: float) -> int:
    """Paint a pole and return its part id."""
    part = brush.front_part(instance, "pole", brush.material("pole"), z)
    width = brush.rng.uniform(0.16, 0.27)
    brush.canvas.fill(part, rectangle(x, 0.0, z, width, height))
    brush.canvas.cast_shadow(footprint(x, z, width, width), height)
    brush.canvas.touch_ground(footprint(x, z, 2 * width, 2 * width))
    return part


def paint_traffic_light(brush: Brush, x: float, z: float, inwards: float) -> None:
    """Paint a pole with a housing of three lamps, one of them lit; some hang above the road."""
    rng = brush.rng
    overhang = inwards * rng.choice([0.0, 2.6])
    height = 5.4 if overhang else rng.uniform(2.9, 3.5)
    pole = _paint_pole(brush, brush.canvas.new_instance(), x, z, height)
    if overhang:
        brush.canvas.stroke(pole, np.array([(x, 5.3, z), (x + overhang, 5.3, z)]), 0.14)
    instance = brush.canvas.new_instance()
    box = brush.front_part(instance, "traffic light", brush.appearance.shared("housing"), z)
    brush.canvas.fill(box, rectangle(x + overhang, height - 1.4, z, 0.62, 1.6))
    lit = rng.integers(3)
    for lamp, colour in enumerate((_RED, _AMBER, _GREEN)):
        surface = brush.material("rim", colour if lamp == lit else _DARK)
        part = brush.front_part(instance, "traffic light", surface, z, 0.6)
        middle = height - 0.08 - 0.5 * lamp
        brush.canvas.fill(part, ellipse(x + overhang, middle, z, 0.2, 0.2, 10))


def paint_sign(brush: Brush, x: float, z: float) -> None:
    """Paint a pole with a round, triangular, square or wide traffic sign."""
    rng = brush.rng
    shape, face = rng.integers(4), _SIGN_FACES[rng.integers(len(_SIGN_FACES))]
    height = rng.uniform(2.3, 3.0)
    _paint_pole(brush, brush.canvas.new_instance(), x, z, height)
    instance = brush.canvas.new_instance()
    for colour, scale in zip(face, (1.0, 0.62), strict=True):
        part = brush.front_part(instance, "traffic sign", brush.material("trim", colour), z)
        size = scale * 0.4
        if shape == 3:
            corners = rectangle(x, height - size * 0.9, z, 3.2 * size, 1.8 * size)
        else:
            corners = ellipse(x, height, z, size, size, (12, 3, 4)[shape])
        brush.canvas.fill(part, corners)
