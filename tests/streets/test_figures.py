"""Painted people, plants and street furniture."""

from __future__ import annotations

import numpy as np
import pytest
from street_brushes import make_brush, painted_labels, painted_names

from sfss_ray.streets import figures
from sfss_ray.streets.brush import LABEL

X, Z = 1.0, 6.0
FIGURES = {
    "person": (lambda brush: figures.paint_person(brush, X, Z), {"person"}),
    "cyclist": (lambda b: figures.paint_cyclist(b, X, Z, False), {"rider", "bicycle"}),
    "cyclist across": (lambda b: figures.paint_cyclist(b, X, Z, True), {"rider", "bicycle"}),
    "bicycle": (lambda brush: figures.paint_bicycle(brush, X, Z, True), {"bicycle"}),
    "tree": (lambda brush: figures.paint_tree(brush, X, Z, 3.0), {"vegetation"}),
    "bush": (lambda brush: figures.paint_bush(brush, X, Z, 1.2, 2.0), {"vegetation"}),
    "lamp": (lambda brush: figures.paint_lamp(brush, X, Z, -1), {"pole"}),
    "pole": (lambda brush: figures.paint_bare_pole(brush, X, Z), {"pole"}),
    "traffic light": (
        lambda brush: figures.paint_traffic_light(brush, X, Z, -1),
        {"pole", "traffic light"},
    ),
    "sign": (lambda brush: figures.paint_sign(brush, X, Z), {"pole", "traffic sign"}),
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("seed", range(3))
def test_figures_have_their_classes_and_touch_the_ground(name, seed):
    paint, classes = FIGURES[name]
    brush = make_brush(seed=seed)
    paint(brush)
    assert painted_names(brush) == classes
    feet = brush.canvas.camera.project(np.array([X, 0.0, Z]))
    rows, columns = np.nonzero(brush.canvas.ids)
    assert rows.max() == pytest.approx(feet[1], abs=5)  # leaf clumps are ragged
    assert columns.min() - 5 <= feet[0] <= columns.max() + 5
    assert brush.canvas.contact_mask.any() or name == "bicycle"


def test_bicycle_and_rider_are_two_instances():
    brush = make_brush()
    figures.paint_cyclist(brush, X, Z, True)
    labels = painted_labels(brush)
    instances = brush.canvas.table().instance[brush.canvas.ids]
    owners = {name: set(instances[labels == LABEL[name]]) for name in ("bicycle", "rider")}
    assert all(len(owner) == 1 for owner in owners.values())
    assert owners["bicycle"] != owners["rider"]


def test_a_bicycle_can_join_an_instance():
    brush = make_brush()
    instance = brush.canvas.new_instance()
    figures.paint_bicycle(brush, X, Z, True, instance)
    brush.canvas.finish()
    painted = brush.canvas.table().instance[np.unique(brush.canvas.ids)[1:]]
    assert set(painted) == {instance}


def test_a_person_has_the_height_of_a_person():
    heights = []
    for seed in range(10):
        brush = make_brush(seed=seed)
        figures.paint_person(brush, 0.0, 5.0)
        rows = np.nonzero(painted_labels(brush) == LABEL["person"])[0]
        heights.append(np.ptp(rows) * 5.0 / brush.canvas.camera.focal)
    assert 1.4 < min(heights) < max(heights) < 2.05


def test_far_figures_are_smaller():
    sizes = []
    for z in (5.0, 20.0):
        brush = make_brush()
        figures.paint_tree(brush, 0.0, z, 3.0)
        sizes.append(np.count_nonzero(painted_labels(brush) == LABEL["vegetation"]))
    assert sizes[0] > 8 * sizes[1] > 0
