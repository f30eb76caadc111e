"""Building blocks of pictures: canvases, text, sizes."""

import numpy as np
import pytest

from sfss_ray.report.drawing import (
    INK,
    PAPER,
    blank,
    draw_text,
    fit_size,
    paste,
    resize_image,
    resize_nearest,
)


def test_a_blank_canvas_is_paper():
    canvas = blank(2, 3)
    assert canvas.shape == (2, 3, 3)
    assert (canvas == PAPER).all()


def test_what_is_pasted_over_the_edge_is_cut_off():
    canvas = blank(4, 4)
    paste(canvas, np.zeros((3, 3, 3), np.uint8), y=2, x=3)
    assert (canvas[2:, 3] == 0).all()
    assert (canvas == 0).all(-1).sum() == 2


def test_text_is_drawn_in_ink_on_white_and_grows_with_its_size():
    small, large = (draw_text("road", pixels, INK) for pixels in (10, 20))
    assert large.shape[0] > small.shape[0]
    assert large.shape[1] > small.shape[1]
    assert small[0, -1].tolist() == [255, 255, 255]
    assert np.abs(large.astype(int) - INK).sum(-1).min() <= 6


@pytest.mark.parametrize(
    ("size", "height", "max_width", "expected"),
    [
        ((100, 200), 50, 400, (50, 100)),
        ((100, 200), 50, 60, (30, 60)),
        ((10, 20), 50, 400, (50, 100)),
        ((1, 1000), 50, 100, (1, 100)),
    ],
)
def test_sizes_fit_height_and_width(size, height, max_width, expected):
    assert fit_size(size, height, max_width) == expected


def test_images_shrink_by_area():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, 0] = 100
    assert resize_image(image, (1, 1)).tolist() == [[[25, 25, 25]]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_ids_are_resized_to_the_nearest_pixel(dtype):
    ids = np.array([[1, 2], [3, 4]], dtype)
    if dtype == np.int64:
        ids = ids + 2**40
    larger = resize_nearest(ids, (4, 6))
    assert larger.dtype == dtype
    assert np.array_equal(larger, ids.repeat(2, 0).repeat(3, 1))
    assert np.array_equal(resize_nearest(larger, (2, 2)), ids)
