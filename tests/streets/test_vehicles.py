"""Vehicles: dimensions, visible faces, and parts."""

from __future__ import annotations

import numpy as np
import pytest
from street_brushes import make_brush, painted_labels, painted_names

from sfss_ray.streets.brush import LABEL
from sfss_ray.streets.vehicles import VehicleBody, paint_vehicle, sample_body


def body_of(label: str, seed: int = 0) -> VehicleBody:
    """Return a random vehicle of a class."""
    return sample_body(np.random.default_rng(seed), label)


@pytest.mark.parametrize("label", ["car", "truck", "bus"])
@pytest.mark.parametrize("seed", range(5))
def test_profiles_are_closed_outlines_with_windows_and_axles_inside(label, seed):
    body = body_of(label, seed)
    along, up = np.array(body.profile).T
    assert body.label == label
    assert along[0] == along.min()
    assert up.min() > 0
    for window in body.windows:
        window_along, window_up = np.array(window).T
        assert along.min() < window_along.min() < window_along.max() < along.max()
        assert up.min() < window_up.min() < window_up.max() < up.max()
    assert all(along.min() < axle < along.max() for axle in body.axles)
    strips = {*body.glass_strips, body.tail_strip, body.nose_strip}
    assert all(0 <= strip < len(body.profile) - 1 for strip in strips)
    ends = [body.profile[edge : edge + 2] for edge in (body.tail_strip, body.nose_strip)]
    assert np.mean(ends[0], axis=0)[0] < 0 < np.mean(ends[1], axis=0)[0]


def test_vehicles_have_realistic_lengths():
    for label, low, high in (("car", 3.7, 4.8), ("truck", 6.5, 9.0), ("bus", 9.0, 12.0)):
        along = np.array(body_of(label).profile)[:, 0]
        assert low <= np.ptp(along) <= high


@pytest.mark.parametrize("label", ["car", "truck", "bus"])
@pytest.mark.parametrize("heading", [0.0, np.pi, np.pi / 2, 0.7])
def test_a_vehicle_is_one_instance_between_its_ends(label, heading):
    brush, body = make_brush(), body_of(label)
    paint_vehicle(brush, body, 0.0, 15.0, heading)
    assert painted_names(brush) == {label}
    painted = np.unique(brush.canvas.ids)[1:]
    assert set(brush.canvas.table().instance[painted]) == {1}
    columns = np.nonzero(brush.canvas.ids)[1]
    camera, half = brush.canvas.camera, np.hypot(np.ptp(np.array(body.profile)[:, 0]), 2.5) / 2
    reach = camera.focal * half / (15.0 - half)
    assert columns.min() >= camera.vanish_x - reach - 2
    assert columns.max() <= camera.vanish_x + reach + 2


def test_a_vehicle_across_the_road_is_as_long_as_its_profile():
    brush, body = make_brush(), body_of("bus")
    paint_vehicle(brush, body, 0.0, 20.0, np.pi / 2)
    columns = np.nonzero(painted_labels(brush) == LABEL["bus"])[1]
    length = np.ptp(np.array(body.profile)[:, 0])
    near_side = 20.0 - body.width / 2
    assert np.ptp(columns) == pytest.approx(100 * length / near_side, abs=3)


def test_tail_lamps_are_red_and_headlamps_are_white():
    """A car that drives away shows its tail, and one that approaches shows its nose."""
    tail_colour, head_colour = (0.75, 0.06, 0.06), (0.95, 0.94, 0.85)
    for heading, visible, hidden in (
        (0.0, tail_colour, head_colour),
        (np.pi, head_colour, tail_colour),
    ):
        brush = make_brush()
        paint_vehicle(brush, body_of("car"), 0.0, 8.0, heading)
        brush.canvas.finish()
        colours = brush.canvas.table().colour[np.unique(brush.canvas.ids)[1:]]
        assert np.isclose(colours, visible, atol=1e-6).all(1).any()
        assert not np.isclose(colours, hidden, atol=1e-6).all(1).any()


def test_a_vehicle_darkens_the_ground_below_it():
    brush = make_brush()
    paint_vehicle(brush, body_of("car"), 0.0, 8.0, 0.0)
    brush.canvas.finish()
    column, row = brush.canvas.camera.project(np.array([0.0, 0.0, 8.0])).astype(int)
    assert brush.canvas.contact_mask[row, column] == 255
