"""Cars, trucks and buses: extruded side profiles with any heading."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sfss_ray.streets.brush import LABEL, Brush, unit_circle
from sfss_ray.streets.canvas import Material

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class VehicleBody:
    """The shape of a vehicle from the side: (along, up) in metres, nose at the largest `along`."""

    label: str
    profile: Points  # closed outline, from the lower rear over the roof to the lower nose
    windows: list[Points]  # outlines
    glass_strips: tuple[int, ...]  # profile edges that are windscreens
    tail_strip: int  # profile edge of the rear
    nose_strip: int  # profile edge of the front
    width: float
    wheel_radius: float
    axles: tuple[float, ...]  # positions along
    box_edge: float | None = None  # front end of a cargo box, which has its own colour


def _car(length: float, height: float, boot: float, bonnet: float) -> VehicleBody:
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
    return VehicleBody("car", profile, windows, (2, 4), 0, 6, 1.78, 0.32, axles)


def _bus(length: float, height: float) -> VehicleBody:
    half = length / 2
    profile = [(-half, 0.35), (-half, height), (half - 0.15, height), (half, 1.1), (half, 0.35)]
    edges = np.linspace(-half + 0.3, half - 0.4, 7)
    low, top = 0.45 * height, 0.82 * height
    windows = [
        [(a + 0.06, low), (a + 0.06, top), (b - 0.06, top), (b - 0.06, low)]
        for a, b in pairwise(edges)
    ]
    axles = (-0.28 * length, 0.3 * length)
    return VehicleBody("bus", profile, windows, (2,), 0, 3, 2.5, 0.48, axles)


def _truck(length: float, height: float) -> VehicleBody:
    half = length / 2
    cab = half - 1.9
    profile = [
        (-half, 0.75), (-half, height), (cab, height), (cab, 2.7), (half - 0.3, 2.7),
        (half, 1.6), (half, 0.5), (cab, 0.5), (cab, 0.75),
    ]  # fmt: skip
    windows = [[(cab + 0.5, 1.6), (cab + 0.5, 2.4), (half - 0.45, 2.4), (half - 0.2, 1.6)]]
    axles = (-0.32 * length, -0.18 * length, half - 0.9)
    return VehicleBody("truck", profile, windows, (4,), 0, 5, 2.45, 0.5, axles, cab)


def sample_body(rng: np.random.Generator, label: str) -> VehicleBody:
    """Draw the dimensions of a "car", "truck" or "bus"."""
    if label == "bus":
        return _bus(rng.uniform(9, 12), rng.uniform(2.9, 3.3))
    if label == "truck":
        return _truck(rng.uniform(6.5, 9), rng.uniform(2.9, 3.6))
    length, height = rng.uniform(3.7, 4.8), rng.uniform(1.38, 1.75)
    boot = rng.choice([0.05, 0.12, 0.75])
    return _car(length, height, boot, rng.uniform(0.8, 1.15))


class _Frame:
    """Converts body coordinates (along, up, aside) to world coordinates."""

    def __init__(self, x: float, z: float, heading: float) -> None:
        self._centre = np.array([x, 0.0, z])
        sin, cos = np.sin(heading), np.cos(heading)
        self.along = np.array([sin, 0.0, cos])
        self.aside = np.array([cos, 0.0, -sin])
        self._axes = np.array([self.along, [0.0, 1.0, 0.0]])

    def to_world(self, outline: Points | np.ndarray, aside: float) -> np.ndarray:
        """Return world points (k, 3) of an outline of (along, up)."""
        return np.asarray(outline, float) @ self._axes + (self._centre + aside * self.aside)


def _faces(point: np.ndarray, normal: np.ndarray, eye: np.ndarray) -> bool:
    """Return whether a face with this point and normal is turned towards the eye."""
    return float(np.dot(eye - point, normal)) > 0


@dataclass(frozen=True)
class _SideStrip:
    """A face across the whole width of a body."""

    edge: int  # index of the profile edge
    corners: np.ndarray  # (4, 3)
    normal: np.ndarray


@dataclass(frozen=True)
class _VehiclePainter:
    """Paints the faces of one vehicle."""

    brush: Brush
    body: VehicleBody
    frame: _Frame
    instance: int
    depth: float  # of the centre

    def part(self, material: Material, normal: np.ndarray) -> int:
        """Return a new part of the vehicle with this normal."""
        lit = 0.1 + 0.9 * self.brush.appearance.lit(normal.tolist())
        canvas, label = self.brush.canvas, LABEL[self.body.label]
        return canvas.new_part(
            self.instance, label, material, canvas.camera.front_plane(self.depth), lit
        )

    def paint_shadow(self) -> None:
        """Shade the ground below and beside the vehicle."""
        profile, half = self.body.profile, self.body.width / 2
        ends = [(min(p[0] for p in profile), 0.0), (max(p[0] for p in profile), 0.0)]
        sides = [self.frame.to_world(ends, half), self.frame.to_world(ends, -half)]
        corners = np.concatenate(sides)[:, [0, 2]]
        self.brush.canvas.cast_shadow(corners, max(p[1] for p in profile))
        self.brush.canvas.touch_ground(corners)

    def visible_strips(self, eye: np.ndarray) -> list[_SideStrip]:
        """Return the faces across the body that the camera sees, far ones first."""
        body, frame, strips = self.body, self.frame, []
        half = body.width / 2
        for edge, (a, b) in enumerate(zip(body.profile[:-1], body.profile[1:], strict=True)):
            # The cabin of a car is narrower than its body.
            inset = 0.12 if min(a[1], b[1]) > 0.85 and body.label == "car" else 0.0
            sides = [frame.to_world([a, b], half - inset), frame.to_world([b, a], inset - half)]
            corners = np.concatenate(sides)
            run, rise = b[0] - a[0], b[1] - a[1]
            normal = (-rise * frame.along + run * np.array([0, 1.0, 0])) / np.hypot(run, rise)
            if _faces(corners.mean(0), normal, eye):
                strips.append(_SideStrip(edge, corners, normal))
        return sorted(strips, key=lambda strip: -strip.corners[:, 2].mean())

    def paint_underside(self) -> None:
        """Paint wheels and shade below the body, visible from either end."""
        dark = self.part(self.brush.appearance.shared("tyre"), np.array([0.0, -1.0, 0.0]))
        half = self.body.width / 2
        for axle in self.body.axles:
            for side in (-1, 1):
                edge = [(axle, 0.0), (axle, 2 * self.body.wheel_radius)]
                outer, inner = side * half * 0.98, side * (half - 0.22)
                faces = [self.frame.to_world(edge, outer), self.frame.to_world(edge[::-1], inner)]
                self.brush.canvas.fill(dark, np.concatenate(faces))

    def paint_side(self, side: float, paint: Material, cargo: Material) -> None:
        """Paint the left (-1) or right (1) side with its windows and wheels."""
        canvas, body, frame = self.brush.canvas, self.body, self.frame
        half, normal = side * body.width / 2, side * frame.aside
        outline = np.asarray(body.profile)
        corners = frame.to_world(outline, half)
        if body.label == "car":
            inset = np.where(outline[:, 1] > 0.85, 0.12, 0.0)[:, None]
            corners = corners - side * inset * frame.aside
        canvas.fill(self.part(paint, normal), corners)
        if body.box_edge is not None:
            box = outline.copy()
            box[:, 0] = np.minimum(box[:, 0], body.box_edge - 0.1)
            box[:, 1] = np.maximum(box[:, 1], outline[0, 1])
            canvas.fill(self.part(cargo, normal), frame.to_world(box, half))
        glass = self.part(self.brush.material("glass"), normal)
        for window in body.windows:
            canvas.fill(glass, frame.to_world(window, half - side * 0.06))
        self._paint_wheels(half, normal)

    def _paint_wheels(self, half: float, normal: np.ndarray) -> None:
        """Paint the wheels of one side, slightly outside the body."""
        canvas, shared = self.brush.canvas, self.brush.appearance.shared
        tyre, rim = self.part(shared("tyre"), normal), self.part(shared("rim"), normal)
        circle = unit_circle(12)[:, :2] * self.body.wheel_radius
        for axle in self.body.axles:
            centre = np.array([axle, self.body.wheel_radius])
            canvas.fill(tyre, self.frame.to_world(centre + circle, half * 1.01))
            canvas.fill(rim, self.frame.to_world(centre + 0.55 * circle, half * 1.02))

    def paint_end(self, strip: _SideStrip) -> None:
        """Paint lights, number plate, bumper and, on the tail of a bus, a rear window."""
        canvas, brush, normal = self.brush.canvas, self.brush, strip.normal
        is_tail = strip.edge == self.body.tail_strip
        low, high = (strip.corners[0], strip.corners[3]), (strip.corners[1], strip.corners[2])
        if not is_tail:
            low, high = high, low

        def point(u: float, v: float) -> np.ndarray:
            """Return the point at the shares u of the width and v of the height."""
            below, above = low[0] + u * (low[1] - low[0]), high[0] + u * (high[1] - high[0])
            return below + v * (above - below)

        def box(u0: float, u1: float, v0: float, v1: float) -> np.ndarray:
            return np.stack([point(u0, v0), point(u1, v0), point(u1, v1), point(u0, v1)])

        # On trucks and buses the lights are in the lowest third.
        top = 1.0 if self.body.label == "car" else 0.35
        colour = (0.75, 0.06, 0.06) if is_tail else (0.95, 0.94, 0.85)
        lamp = self.part(brush.material("rim", colour), normal)
        for u in (0.03, 0.81):
            canvas.fill(lamp, box(u, u + 0.16, 0.5 * top, 0.82 * top))
        plate = self.part(brush.material("trim"), normal)
        canvas.fill(plate, box(0.36, 0.64, 0.3 * top, 0.5 * top))
        bumper = self.part(brush.appearance.shared("tyre"), normal)
        canvas.fill(bumper, box(0.02, 0.98, 0.0, 0.14 * top))
        if self.body.label == "bus" and is_tail:
            canvas.fill(self.part(brush.material("glass"), normal), box(0.08, 0.92, 0.55, 0.9))


def paint_vehicle(brush: Brush, body: VehicleBody, x: float, z: float, heading: float) -> None:
    """Paint a vehicle centred at (x, z); heading 0 drives away from the camera, pi towards it."""
    camera, frame = brush.canvas.camera, _Frame(x, z, heading)
    eye = np.array([camera.offset, camera.height, 0.0])
    painter = _VehiclePainter(brush, body, frame, brush.canvas.new_instance(), z)
    painter.paint_shadow()
    paint = brush.material("vehicle")
    cargo = paint if body.box_edge is None else brush.material("awning")
    painter.paint_underside()

    strips = painter.visible_strips(eye)
    for strip in strips:
        is_cargo = body.box_edge is not None and strip.edge <= 1
        is_glass = strip.edge in body.glass_strips
        surface = brush.material("glass") if is_glass else cargo if is_cargo else paint
        brush.canvas.fill(painter.part(surface, strip.normal), strip.corners)
    for side in (-1.0, 1.0):
        if _faces(frame.to_world([(0, 1)], side * body.width / 2)[0], side * frame.aside, eye):
            painter.paint_side(side, paint, cargo)
    for strip in strips:
        if strip.edge in (body.tail_strip, body.nose_strip):
            painter.paint_end(strip)
