"""Projection of world points, and painting of part ids on a canvas."""

from __future__ import annotations

import numpy as np
import pytest
from street_brushes import make_camera

from sfss_ray.streets.canvas import IGNORE, NEAR, Canvas, Material

GREY = Material((0.5, 0.5, 0.5))
FACING = (0.0, 0.0, 1.0)


def square(left: float, right: float, top: float, bottom: float, depth: float = 10) -> np.ndarray:
    """Return the world corners of a rectangle given in pixels of `make_camera`."""
    camera = make_camera()
    pixels = [(left, top), (right, top), (right, bottom), (left, bottom)]
    scale = depth / camera.focal
    return np.array(
        [
            ((x - camera.vanish_x) * scale, camera.height - (y - camera.vanish_y) * scale, depth)
            for x, y in pixels
        ]
    )


@pytest.mark.parametrize("depth", [1.0, 7.5, 300.0])
def test_projection_is_that_of_a_pinhole_camera(depth):
    camera = make_camera(offset=0.5)
    point = np.array([2.0, 1.0, depth])
    expected = [100 + 100 * (2.0 - 0.5) / depth, 50 + 100 * (1.5 - 1.0) / depth]
    assert camera.project(point) == pytest.approx(expected)


def test_points_behind_the_camera_are_moved_to_the_nearest_depth():
    camera = make_camera()
    behind, near = np.array([[0.1, 1.0, -5.0], [0.1, 1.0, NEAR]])
    assert camera.project(behind) == pytest.approx(camera.project(near))
    assert np.abs(camera.project(np.array([1e9, 0.0, 1.0]))).max() <= 1 << 15


def test_a_rolled_camera_turns_the_image_about_the_vanishing_point():
    point = np.array([3.0, 0.5, 12.0])
    level = make_camera().project(point) - (100, 50)
    rolled = make_camera(roll=0.3).project(point) - (100, 50)
    turn = np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    assert rolled == pytest.approx(turn @ level)


@pytest.mark.parametrize("roll", [0.0, 0.1])
def test_planes_give_the_depth_of_their_points(roll):
    """Inverse depth is linear in the slopes of the ray through a pixel."""
    camera = make_camera(roll=roll)
    right, down = camera.rays()
    cases = [
        (camera.ground_plane(), np.array([2.0, 0.0, 9.0])),
        (camera.side_plane(4.0), np.array([4.0, 2.0, 9.0])),
        (camera.front_plane(9.0), np.array([-3.0, 1.0, 9.0])),
    ]
    for plane, point in cases:
        column, row = np.rint(camera.project(point)).astype(int)
        inverse = plane[0] * right[row, column] + plane[1] * down[row, column] + plane[2]
        assert 1 / inverse == pytest.approx(9.0, rel=0.05)


def test_later_polygons_cover_earlier_ones():
    canvas = Canvas(make_camera(), None)
    first, second = (canvas.new_part(canvas.new_instance(), k, GREY, FACING) for k in (3, 7))
    canvas.fill(first, square(20, 60, 10, 40))
    canvas.fill(second, square(40, 80, 20, 60, depth=30))  # farther away, but painted later
    canvas.finish()
    assert (canvas.ids[30, 30], canvas.ids[30, 50], canvas.ids[50, 70]) == (first, second, second)
    assert canvas.ids[100, 100] == 0
    table = canvas.table()
    assert table.label[[0, first, second]].tolist() == [IGNORE, 3, 7]
    assert table.instance[[0, first, second]].tolist() == [0, 1, 2]


def test_a_polygon_covers_its_pixels():
    canvas = Canvas(make_camera(), None)
    part = canvas.new_part(canvas.new_instance(), 1, GREY, FACING)
    canvas.fill(part, square(20, 59, 10, 39))
    canvas.finish()
    rows, columns = np.nonzero(canvas.ids)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 39, 20, 59)
    assert len(rows) == 40 * 30


def test_nothing_is_drawn_before_finish_and_nothing_twice():
    canvas = Canvas(make_camera(), None)
    part = canvas.new_part(canvas.new_instance(), 1, GREY, FACING)
    canvas.fill(part, square(0, 50, 0, 50))
    assert not canvas.ids.any()
    canvas.finish()
    canvas.ids[:] = 0
    canvas.finish()
    assert not canvas.ids.any()


def test_several_polygons_are_painted_at_once_or_each():
    squares = np.stack([square(10, 30, 10, 30), square(20, 40, 20, 40)])
    both = Canvas(make_camera(), None)
    part = both.new_part(both.new_instance(), 1, GREY, FACING)
    both.fill_each(part, squares)
    both.finish()
    assert both.ids[25, 25] == part, "overlapping polygons leave no hole"
    together = Canvas(make_camera(), None)
    part = together.new_part(together.new_instance(), 1, GREY, FACING)
    together.fill(part, np.stack([square(10, 30, 10, 30), square(50, 70, 10, 30)]))
    together.fill(part, np.empty((0, 4, 3)))
    together.finish()
    assert (together.ids[20, [20, 40, 60]] == [part, 0, part]).all()


def test_a_stroke_has_its_width_at_its_depth_and_at_least_a_pixel():
    for depth, thickness in ((10.0, 10), (1000.0, 1)):
        canvas = Canvas(make_camera(), None)
        part = canvas.new_part(canvas.new_instance(), 1, GREY, FACING)
        ends = square(20, 80, 50, 50, depth)[:2]
        canvas.stroke(part, ends, width=1.0)
        canvas.finish()
        assert abs(np.count_nonzero(canvas.ids[:, 50]) - thickness) <= 1


def test_shadows_are_cast_only_in_the_sun_and_contact_shadows_always():
    footprint = np.array([(-1.0, 9.0), (1.0, 9.0), (1.0, 10.0), (-1.0, 10.0)])
    overcast, sunny = Canvas(make_camera(), None), Canvas(make_camera(), (1.0, 0.0))
    for canvas in (overcast, sunny):
        canvas.cast_shadow(footprint, height=2.0)
        canvas.touch_ground(footprint)
        canvas.finish()
        assert canvas.contact_mask.any()
    assert not overcast.sun_mask.any()
    # A body 2 m high shades the ground from x = -1 to its right edge plus 2 m.
    shaded = np.nonzero(sunny.sun_mask)[1]
    camera = make_camera()
    left, right = camera.project(np.array([[-1.0, 0, 9.0], [3.0, 0, 9.0]]))[:, 0]
    assert (shaded.min(), shaded.max()) == pytest.approx((left, right), abs=1)
