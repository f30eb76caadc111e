"""Painted buildings."""

from __future__ import annotations

import numpy as np
import pytest
from street_brushes import HORIZON, make_brush, painted_labels, painted_names

from sfss_ray.streets.brush import LABEL
from sfss_ray.streets.buildings import paint_building


@pytest.mark.parametrize("x", [-6.0, 6.0])
def test_a_building_stands_on_its_side_of_the_road_above_the_ground(x):
    brush = make_brush()
    paint_building(brush, x, 8.0, 20.0)
    rows, columns = np.nonzero(painted_labels(brush) == LABEL["building"])
    edge = brush.canvas.camera.project(np.array([x, 0.0, 20.0]))[0]
    assert (columns >= edge - 1).all() if x > 0 else (columns <= edge + 1).all()
    assert rows.min() < HORIZON < rows.max()
    ground = brush.canvas.camera.project(np.array([x, 0.0, 8.0]))[1]
    assert rows.max() <= ground + 1


def test_a_building_is_one_instance_of_many_parts():
    brush = make_brush()
    paint_building(brush, 6.0, 8.0, 20.0)
    assert painted_names(brush) == {"building"}
    parts = np.unique(brush.canvas.ids[brush.canvas.ids > 0])
    assert len(parts) >= 3
    assert set(brush.canvas.table().instance[parts]) == {1}


def test_buildings_of_more_floors_are_higher():
    tops = []
    for floors in (2, 11):
        brush = make_brush(floors=(floors, floors), roof_chance=0.0)
        paint_building(brush, 6.0, 30.0, 40.0)
        tops.append(int(np.nonzero(painted_labels(brush) == LABEL["building"])[0].min()))
    assert tops[1] < tops[0]


@pytest.mark.parametrize("seed", range(8))
def test_narrow_lots_and_lots_behind_the_camera_are_painted(seed):
    """A lot may be narrower than one window, and the first lots begin behind the camera."""
    brush = make_brush(seed=seed)
    paint_building(brush, 5.0, 9.0, 9.5)
    paint_building(brush, -5.0, -6.0, 8.0)
    assert painted_names(brush) == {"building"}
