"""Street life: vehicles, people and furniture between the lots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from street_brushes import make_brush, painted_names

from sfss_ray.streets import traffic
from sfss_ray.streets.surroundings import Layout
from sfss_ray.streets.traffic import paint_street_life

LAYOUT = Layout(2, 3.0, (2.5, 2.5), (2.0, 0.0), 100.0, 20.0)
NONE = (0.0, 0.0)


def test_all_kinds_of_objects_appear():
    names: set[str] = set()
    for seed in range(6):
        brush = make_brush("camera", seed)
        paint_street_life(brush, LAYOUT)
        names |= painted_names(brush)
    assert {"car", "person", "rider", "bicycle", "vegetation", "pole"} <= names
    assert {"traffic light", "traffic sign"} <= names


def test_a_style_without_people_has_none():
    layout = replace(LAYOUT, crossing=None)  # people also walk on zebra crossings
    for seed in range(6):
        brush = make_brush("camera", seed, people=NONE, cyclists=NONE, signs=NONE)
        paint_street_life(brush, layout)
        assert not painted_names(brush) & {"person", "rider", "traffic sign"}


def test_objects_are_painted_from_far_to_near(monkeypatch):
    depths: list[float] = []
    for name in ("paint_person", "paint_tree", "paint_lamp", "paint_sign"):
        monkeypatch.setattr(traffic, name, lambda brush, x, z, *_: depths.append(float(z)))
    paint_street_life(make_brush("camera"), LAYOUT)
    assert len(depths) > 5
    assert depths == sorted(depths, reverse=True)


def test_lanes_on_the_left_approach_and_lanes_on_the_right_drive_away(monkeypatch):
    vehicles: list[tuple[float, float]] = []
    monkeypatch.setattr(
        traffic, "paint_vehicle", lambda brush, body, x, z, heading: vehicles.append((x, heading))
    )
    layout = replace(LAYOUT, crossing=None)
    for seed in range(6):
        paint_street_life(make_brush("camera", seed, parked_chance=0.0), layout)
    assert len(vehicles) > 6
    for x, heading in vehicles:
        assert np.cos(heading) * np.sign(x) > 0.9


def test_parked_cars_stand_along_the_kerbs_and_keep_the_crossing_clear(monkeypatch):
    parked: list[tuple[float, float]] = []
    monkeypatch.setattr(
        traffic, "paint_vehicle", lambda brush, body, x, z, heading: parked.append((x, z))
    )
    for seed in range(6):
        brush = make_brush("camera", seed, parked_chance=1.0)
        paint_street_life(brush, LAYOUT)
    kerb = LAYOUT.road_half + 0.1
    at_kerb = [(x, z) for x, z in parked if abs(abs(x) - kerb) < 1e-9]
    assert len(at_kerb) > 20
    assert {np.sign(x) for x, _ in at_kerb} == {-1, 1}
    assert all(abs(z - 20.0 - 4) > 9 for _, z in at_kerb)
