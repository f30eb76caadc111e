"""Layouts, ground, lots and backdrop of a street."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from street_brushes import COLUMNS, HORIZON, ROWS, make_brush, painted_labels, painted_names

from sfss_ray.streets import surroundings
from sfss_ray.streets.brush import LABEL
from sfss_ray.streets.scenes import DOMAINS
from sfss_ray.streets.surroundings import (
    Layout,
    paint_backdrop,
    paint_bonnet,
    paint_ground,
    paint_lots,
    paint_sky,
    sample_layout,
)

LAYOUT = Layout(2, 3.0, (2.0, 3.0), (0.0, 1.5), 100.0, None)


def label_at(labels: np.ndarray, brush, x: float, z: float) -> int:
    """Return the label at a point on the ground."""
    column, row = np.rint(brush.canvas.camera.project(np.array([x, 0.0, z]))).astype(int)
    return int(labels[row, column])


def test_lots_begin_behind_sidewalk_and_verge():
    assert LAYOUT.road_half == 3.0
    assert LAYOUT.lot_edge(-1) == -(3.0 + 2.0)
    assert LAYOUT.lot_edge(1) == 3.0 + 3.0 + 1.5


@pytest.mark.parametrize("domain", DOMAINS)
def test_sampled_layouts_follow_the_style(domain):
    brush = make_brush(domain)
    for _ in range(30):
        layout = sample_layout(brush)
        assert layout.lanes in brush.style.lanes
        low, high = brush.style.sidewalk
        assert all(low <= width <= high for width in layout.sidewalk)
        assert layout.crossing is None or 14 <= layout.crossing <= layout.end


def test_the_sky_fills_the_canvas():
    brush = make_brush()
    sky = paint_sky(brush)
    assert (brush.canvas.ids == sky).all()
    assert (painted_labels(brush) == LABEL["sky"]).all()


def test_road_sidewalk_and_terrain_lie_where_the_layout_says():
    brush = make_brush()
    paint_sky(brush)
    paint_ground(brush, LAYOUT)
    labels = painted_labels(brush)
    assert (labels[: HORIZON - 1] == LABEL["sky"]).all()
    for x, name in ((0.0, "road"), (2.7, "road"), (5.0, "sidewalk"), (6.7, "terrain")):
        assert label_at(labels, brush, x, 15.0) == LABEL[name], x
    # Without a verge the paving continues below the lots on the left.
    for x, name in ((-2.7, "road"), (-4.0, "sidewalk"), (-8.0, "sidewalk")):
        assert label_at(labels, brush, x, 15.0) == LABEL[name], x


def test_a_crossing_road_interrupts_the_sidewalk():
    brush = make_brush()
    paint_ground(brush, replace(LAYOUT, crossing=14.0))
    labels = painted_labels(brush)
    assert label_at(labels, brush, 5.0, 10.0) == LABEL["sidewalk"]
    assert label_at(labels, brush, 5.0, 17.0) == LABEL["road"]


def test_lots_contain_buildings_or_parks_or_nothing():
    for use, names in (
        ("building", {"building"}),
        ("park", {"terrain", "vegetation", "fence", "wall"}),
        ("gap", set()),
    ):
        lots = {"building": 0.0, "park": 0.0, "gap": 0.0} | {use: 1.0}
        brush = make_brush(lots=lots)
        paint_lots(brush, LAYOUT)
        assert painted_names(brush) <= names
        assert bool(painted_names(brush)) == bool(names)


@pytest.mark.parametrize("seed", range(5))
def test_no_lot_reaches_into_a_crossing_road(seed, monkeypatch):
    spans: list[tuple[float, float]] = []
    monkeypatch.setattr(
        surroundings, "paint_building", lambda brush, x, near, far: spans.append((near, far))
    )
    brush = make_brush(seed=seed, lots={"building": 1.0, "park": 0.0, "gap": 0.0})
    paint_lots(brush, replace(LAYOUT, crossing=30.0))
    assert any(near < 30 for near, _ in spans)
    assert any(near > 30 for near, _ in spans)
    assert all(far <= 30 - 1 or near >= 30 + 10 for near, far in spans)


def test_the_backdrop_is_trees_or_houses_or_nothing():
    backdrops = set()
    for seed in range(20):
        brush = make_brush(seed=seed)
        paint_backdrop(brush, LAYOUT)
        backdrops.add(frozenset(painted_names(brush)))
    assert backdrops == {frozenset(), frozenset({"vegetation"}), frozenset({"building"})}


def test_the_bonnet_is_ignored_and_highest_in_the_middle():
    brush = make_brush()
    paint_sky(brush)
    paint_bonnet(brush)
    labels = painted_labels(brush)
    heights = (labels == 255).sum(0)
    assert heights[COLUMNS // 2] == heights.max() > heights[0]
    assert 0 < heights.max() < 0.2 * ROWS
    assert (brush.canvas.table().instance[brush.canvas.ids][labels == 255] == 0).all()
