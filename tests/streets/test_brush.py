"""A brush's parts, and the shapes it paints."""

from __future__ import annotations

import numpy as np
import pytest
from street_brushes import make_brush

from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.streets.brush import (
    LABEL,
    ellipse,
    footprint,
    ground_quad,
    rectangle,
    side_quads,
    unit_circle,
)


def test_labels_are_the_train_ids_of_cityscapes():
    for name, train_id in LABEL.items():
        assert train_id == (255 if name == "void" else CITYSCAPES_19.classes.index(name))


def test_parts_have_the_plane_and_the_label_of_their_kind():
    brush = make_brush()
    camera, material = brush.canvas.camera, brush.material("pole")
    instance = brush.canvas.new_instance()
    parts = [
        brush.ground_part(instance, "road", material),
        brush.side_part(instance, "building", material, 4.0),
        brush.front_part(instance, "pole", material, 9.0),
    ]
    table = brush.canvas.table()
    assert table.label[parts].tolist() == [LABEL["road"], LABEL["building"], LABEL["pole"]]
    assert table.ground[parts].tolist() == [True, False, False]
    planes = [camera.ground_plane(), camera.side_plane(4.0), camera.front_plane(9.0)]
    assert table.plane[parts] == pytest.approx(np.array(planes))


def test_a_given_share_of_sunlight_replaces_the_computed_one():
    brush = make_brush()
    part = brush.front_part(brush.canvas.new_instance(), "pole", brush.material("pole"), 9.0, 0.25)
    assert brush.canvas.table().lit[part] == 0.25


def test_a_given_colour_makes_a_smooth_material():
    material = make_brush().material("rim", (0.1, 0.2, 0.3))
    assert (material.colour, material.texture, material.contrast) == ((0.1, 0.2, 0.3), "smooth", 0)


def area(polygon: np.ndarray) -> float:
    """Return the area of a plane polygon (k, 3) by the shoelace formula in space."""
    cross = np.cross(polygon, np.roll(polygon, -1, axis=0)).sum(0)
    return float(np.linalg.norm(cross) / 2)


def test_rectangles_have_their_width_height_and_position():
    corners = rectangle(2.0, 1.0, 9.0, 0.5, 3.0)
    assert area(corners - corners[0]) == pytest.approx(0.5 * 3.0)
    assert corners[:, 0].tolist() == [1.75, 2.25, 2.25, 1.75]
    assert (corners[:, 1].min(), corners[:, 1].max(), set(corners[:, 2])) == (1.0, 4.0, {9.0})
    level = ground_quad(-1, 2, 5, 9, 0.1)
    assert area(level - level[0]) == pytest.approx(12)
    assert set(level[:, 1]) == {0.1}


@pytest.mark.parametrize("corners", [3, 4, 12])
def test_ellipses_start_at_their_top_and_have_their_axes(corners):
    circle = unit_circle(corners)
    assert circle[0] == pytest.approx([0, 1, 0])
    assert np.hypot(*circle[:, :2].T) == pytest.approx(1)
    scaled = (ellipse(1.0, 2.0, 9.0, 3.0, 0.5, corners) - (1.0, 2.0, 9.0)) / (3.0, 0.5, 1.0)
    assert scaled == pytest.approx(circle)
    # The area of a regular polygon in a circle of radius 1.
    assert area(circle) == pytest.approx(corners / 2 * np.sin(2 * np.pi / corners))


def test_side_quads_broadcast_their_bounds():
    quads = side_quads(3.0, np.array([1.0, 5.0]), np.array([2.0, 8.0]), 0.0, 4.0)
    assert quads.shape == (2, 4, 3)
    assert set(quads[..., 0].ravel()) == {3.0}
    assert [area(quad - quad[0]) for quad in quads] == pytest.approx([4.0, 12.0])
    assert side_quads(3.0, 1.0, 2.0, 0.0, 4.0).shape == (1, 4, 3)
    assert side_quads(3.0, np.empty(0), 2.0, 0.0, 4.0).shape == (0, 4, 3)


def test_a_footprint_is_centred():
    corners = footprint(2.0, 9.0, 1.0, 3.0)
    assert corners.mean(0) == pytest.approx([2.0, 9.0])
    assert np.ptp(corners, axis=0).tolist() == [1.0, 3.0]
