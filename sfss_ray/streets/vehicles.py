"""Cars, trucks and buses as extruded profiles, turned to any heading."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sfss_ray.streets.brush import LABEL, Brush, unit_circle
from sfss_ray.streets.canvas import Material

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Body:
    """A vehicle seen from the side: (along, up) in metres, nose at the largest `along`."""

    label: str
    profile: Points  # closed outline, from the lower rear over the roof to the lower nose
    windows: list[Points]
    glass_strips: tuple[int, ...]  # profile edges that are windscreens
    tail_strip: int
    nose_strip: int
    width: float
    wheel_radius: float
    axles: tuple[float, ...]
    box_edge: float | None = None  # cargo box: all behind this `along` has its own colour


def _car(length: float, height: float, boot: float, bonnet: float) -> Body:
    half, belt = length / 2, 0.58 * height
    rear, front = -half + boot, half - bonnet
    profile = [
        (-half, 0.28), (-half, belt), (rear, belt + 0.05), (rear + 0.5, height),
        (front - 0.75, height), (front, belt + 0.02), (half, 0.78 * belt), (half, 0.28),
    ]  # fmt: skip
    top, low = height - 0.1, belt + 0.05
    middle = (rear + front) / 2 - 0.1
    windows = [
        [(rear + 0.2, low), (rear + 0.6, top), (middle - 0.05, top), (middle - 0.05, low)],
        [(middle + 0.05, low), (middle + 0.05, top), (front - 0.8, top), (front - 0.2, low)],
    ]
    axles = (-half + 0.19 * length, half - 0.2 * length)
    return Body("car", profile, windows, (2, 4), 0, 6, 1.78, 0.32, axles)


def _bus(length: float, height: float) -> Body:
    half = length / 2
    profile = [(-half, 0.35), (-half, height), (half - 0.15, height), (half, 1.1), (half, 0.35)]
    edges = np.linspace(-half + 0.3, half - 0.4, 7)
    low, top = 0.45 * height, 0.82 * height
    windows = [
        [(a + 0.06, low), (a + 0.06, top), (b - 0.06, top), (b - 0.06, low)]
        for a, b in pairwise(edges)
    ]
    axles = (-0.28 * length, 0.3 * length)
    return Body("bus", profile, windows, (2,), 0, 3, 2.5, 0.48, axles)


def _truck(length: float, height: float) -> Body:
    half = length / 2
    cab = half - 1.9
    profile = [
        (-half, 0.75), (-half, height), (cab, height), (cab, 2.7), (half - 0.3, 2.7),
        (half, 1.6), (half, 0.5), (cab, 0.5), (cab, 0.75),
    ]  # fmt: skip
    windows = [[(cab + 0.5, 1.6), (cab + 0.5, 2.4), (half - 0.45, 2.4), (half - 0.2, 1.6)]]
    axles = (-0.32 * length, -0.18 * length, half - 0.9)
    return Body("truck", profile, windows, (4,), 0, 5, 2.45, 0.5, axles, cab)


def sample_body(rng: np.random.Generator, label: str) -> Body:
    """A random build of a "car", "truck" or "bus"."""
    if label == "bus":
        return _bus(rng.uniform(9, 12), rng.uniform(2.9, 3.3))
    if label == "truck":
        return _truck(rng.uniform(6.5, 9), rng.uniform(2.9, 3.6))
    length, height = rng.uniform(3.7, 4.8), rng.uniform(1.38, 1.75)
    boot = rng.choice([0.05, 0.12, 0.75])
    return _car(length, height, boot, rng.uniform(0.8, 1.15))


class _Frame:
    """Places body coordinates (along, up, aside) in the world."""

    def __init__(self, x: float, z: float, heading: float) -> None:
        self._centre = np.array([x, 0.0, z])
        sin, cos = np.sin(heading), np.cos(heading)
        self.along = np.array([sin, 0.0, cos])
        self.aside = np.array([cos, 0.0, -sin])
        self._axes = np.array([self.along, [0.0, 1.0, 0.0]])

    def place(self, outline: Points | np.ndarray, aside: float) -> np.ndarray:
        return np.asarray(outline, float) @ self._axes + (self._centre + aside * self.aside)

    def sees(self, camera: np.ndarray, point: np.ndarray, normal: np.ndarray) -> bool:
        return float(np.dot(camera - point, normal)) > 0


def paint_vehicle(brush: Brush, body: Body, x: float, z: float, heading: float) -> None:
    """Paint `body` centred at (x, z); heading 0 drives away from the camera, pi towards it."""
    camera = brush.canvas.camera
    frame, eye = _Frame(x, z, heading), np.array([camera.offset, camera.height, 0.0])
    instance = brush.canvas.instance()
    _paint_shadow(brush, body, frame)

    def part(material: Material, normal: np.ndarray) -> int:
        lit = 0.1 + 0.9 * brush.look.lit(normal.tolist())
        plane = camera.front_plane(z)
        return brush.canvas.part(instance, LABEL[body.label], material, plane, lit)

    paint = brush.material("vehicle")
    cargo = paint if body.box_edge is None else brush.material("awning")
    _paint_underside(brush, body, frame, part)
    strips = _visible_strips(body, frame, eye)
    for edge, quad, normal in strips:
        behind = body.box_edge is not None and edge <= 1
        surface = (cargo if behind else paint) if edge not in body.glass_strips else None
        brush.canvas.fill(part(surface or brush.material("glass"), normal), quad)
    for sign in (-1.0, 1.0):
        if frame.sees(eye, frame.place([(0, 1)], sign * body.width / 2)[0], sign * frame.aside):
            _paint_side(brush, body, frame, sign, part, paint, cargo)
    for edge, quad, normal in strips:
        if edge in (body.tail_strip, body.nose_strip):
            _paint_end(brush, body, quad, normal, part, edge == body.tail_strip)


def _paint_shadow(brush: Brush, body: Body, frame: _Frame) -> None:
    ends = [(min(p[0] for p in body.profile), 0.0), (max(p[0] for p in body.profile), 0.0)]
    half = body.width / 2
    corners = np.concatenate([frame.place(ends, half), frame.place(ends, -half)])[:, [0, 2]]
    brush.canvas.cast_shadow(corners, max(p[1] for p in body.profile))
    brush.canvas.touch_ground(corners)


def _visible_strips(body: Body, frame: _Frame, eye: np.ndarray) -> list[tuple]:
    """Faces across the body that the camera sees, far ones first: (edge, corners, normal)."""
    found = []
    half = body.width / 2
    for edge, (a, b) in enumerate(zip(body.profile[:-1], body.profile[1:], strict=True)):
        inset = 0.12 if min(a[1], b[1]) > 0.85 and body.label == "car" else 0.0
        quad = np.concatenate(
            [frame.place([a, b], half - inset), frame.place([b, a], inset - half)]
        )
        run, rise = b[0] - a[0], b[1] - a[1]
        normal = (-rise * frame.along + run * np.array([0, 1.0, 0])) / np.hypot(run, rise)
        if frame.sees(eye, quad.mean(0), normal):
            found.append((edge, quad, normal))
    return sorted(found, key=lambda face: -face[1][:, 2].mean())


def _paint_underside(brush: Brush, body: Body, frame: _Frame, part) -> None:
    """Wheels and shade below the body, seen from either end."""
    dark = part(brush.look.shared("tyre"), np.array([0.0, -1.0, 0.0]))
    half = body.width / 2
    for axle in body.axles:
        for side in (-1, 1):
            rows = [(axle, 0.0), (axle, 2 * body.wheel_radius)]
            outer, inner = side * half * 0.98, side * (half - 0.22)
            quad = np.concatenate([frame.place(rows, outer), frame.place(rows[::-1], inner)])
            brush.canvas.fill(dark, quad)


def _paint_side(brush: Brush, body: Body, frame: _Frame, sign: float, part, paint, cargo) -> None:
    half, normal = sign * body.width / 2, sign * frame.aside
    outline = np.asarray(body.profile)
    placed = frame.place(outline, half)
    if body.label == "car":
        inset = np.where(outline[:, 1] > 0.85, 0.12, 0.0)[:, None]
        placed = placed - sign * inset * frame.aside
    brush.canvas.fill(part(paint, normal), placed)
    if body.box_edge is not None:
        box = outline.copy()
        box[:, 0] = np.minimum(box[:, 0], body.box_edge - 0.1)
        box[:, 1] = np.maximum(box[:, 1], outline[0, 1])
        brush.canvas.fill(part(cargo, normal), frame.place(box, half))
    glass = part(brush.material("glass"), normal)
    for window in body.windows:
        brush.canvas.fill(glass, frame.place(window, half - sign * 0.06))
    tyre, rim = part(brush.look.shared("tyre"), normal), part(brush.look.shared("rim"), normal)
    circle = unit_circle(12)[:, :2] * body.wheel_radius
    for axle in body.axles:
        centre = np.array([axle, body.wheel_radius])
        brush.canvas.fill(tyre, frame.place(centre + circle, half * 1.01))
        brush.canvas.fill(rim, frame.place(centre + 0.55 * circle, half * 1.02))


def _paint_end(brush: Brush, body: Body, quad: np.ndarray, normal: np.ndarray, part, tail) -> None:
    """Lights, number plate, bumper and, on high vehicles, a rear window."""
    low, high = (quad[0], quad[3]), (quad[1], quad[2])
    if not tail:
        low, high = high, low

    def spot(u: float, v: float) -> np.ndarray:
        below, above = low[0] + u * (low[1] - low[0]), high[0] + u * (high[1] - high[0])
        return below + v * (above - below)

    def box(u0: float, u1: float, v0: float, v1: float) -> np.ndarray:
        return np.stack([spot(u0, v0), spot(u1, v0), spot(u1, v1), spot(u0, v1)])

    top = 1.0 if body.label == "car" else 0.35
    colour = (0.75, 0.06, 0.06) if tail else (0.95, 0.94, 0.85)
    lamp = part(brush.material("rim", colour), normal)
    for u in (0.03, 0.81):
        brush.canvas.fill(lamp, box(u, u + 0.16, 0.5 * top, 0.82 * top))
    brush.canvas.fill(part(brush.material("trim"), normal), box(0.36, 0.64, 0.3 * top, 0.5 * top))
    dark = part(brush.look.shared("tyre"), normal)
    brush.canvas.fill(dark, box(0.02, 0.98, 0.0, 0.14 * top))
    if body.label == "bus" and tail:
        brush.canvas.fill(part(brush.material("glass"), normal), box(0.08, 0.92, 0.55, 0.9))
