"""Masks over an image: untouched background, outlines, stable colours."""

import numpy as np
import pytest

from sfss_ray.errors import DataError
from sfss_ray.report.mask_overlay import draw_masks


def test_masks_leave_unmasked_pixels_alone_and_outline_the_rest():
    image = np.full((20, 20, 3), 100, np.uint8)
    ids = np.zeros((20, 20), np.int32)
    ids[5:15, 5:15] = 7
    drawn = draw_masks(image, ids)
    assert drawn.dtype == np.uint8
    assert (drawn[ids == 0] == 100).all()
    assert (drawn[10, 10] != 100).any()
    assert drawn[10, 14].min() > drawn[10, 10].min()  # the pale outline at the right edge


def test_a_mask_id_has_the_same_colour_in_every_picture():
    image = np.full((9, 9, 3), 50, np.uint8)
    single, ids = np.full((9, 9), 7), np.arange(81).reshape(9, 9)
    ids[3:6, 3:6] = 7
    assert (draw_masks(image, single)[4, 4] == draw_masks(image, ids)[4, 4]).all()


def test_many_masks_have_distinct_colours_even_with_huge_ids():
    ids = np.concatenate([np.arange(1, 41), [2**40]]).repeat(9).reshape(-1, 9)
    drawn = draw_masks(np.zeros((*ids.shape, 3), np.uint8), ids)
    assert len(np.unique(drawn[:, 2], axis=0)) == 41


def test_masks_of_another_size_are_refused():
    with pytest.raises(DataError, match="resize the ids"):
        draw_masks(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), int))
