"""Gathering of crops from painted runs against the whole id map."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from painted_masks import discs, painted

from sfss_ray.masks.bank.painted_runs import checked_window
from sfss_ray.masks.bank.painting import paint_runs
from sfss_ray.masks.bank.run_lengths import encode_masks, to_coco_string, to_coco_strings


def test_runs_take_less_memory_than_the_map():
    masks = discs(40, (200, 300), seed=8)
    runs = paint_runs(to_coco_strings(encode_masks(masks)), np.arange(40) + 1, (200, 300))
    assert (runs.rows.dtype, runs.ids.dtype, runs.offsets.dtype) == (np.uint8, np.uint8, np.int32)
    assert runs.nbytes == 301 * 4 + 2 * len(runs.ids)
    map_changes = np.count_nonzero(np.diff(runs.window(), axis=0))
    assert len(runs.ids) == map_changes + 300  # no superfluous run
    assert paint_runs([], [], (256, 1)).rows.dtype == np.uint16


def test_columns_that_were_not_painted_are_refused():
    runs = paint_runs([to_coco_string([60])], [1], (5, 12), range(3, 7))
    assert not runs.at(np.arange(5), np.arange(3, 7)).any()
    for columns in ([2, 4], [6, 7]):
        with pytest.raises(ValueError, match=rf"columns {columns[0]} to {columns[1]} .*3 to 6"):
            runs.at(np.arange(5), np.array(columns))


def test_pixels_outside_the_image_are_refused():
    runs = paint_runs([to_coco_string([60])], [1], (5, 12))
    for rows, columns, match in (
        ([0, 5], [0], r"rows 0 to 5 .*\(5, 12\).*0 to 4"),
        ([0, 4], [-1, 3], r"columns -1 to 3 .*0 to 11"),
        ([1, 0], [0], "ascending order"),
    ):
        with pytest.raises(ValueError, match=match):
            runs.at(np.array(rows), np.array(columns))
    assert runs.at(np.array([0, 4]), np.array([11, 0, 0])).shape == (2, 3)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_rows_and_columns_are_those_of_the_whole_map(data):
    shape = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    masks = data.draw(st.lists(arrays(bool, shape), min_size=1, max_size=5))
    rows = np.sort(data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=20))).astype(int)
    columns = np.array(data.draw(st.lists(st.integers(0, shape[1] - 1), max_size=20)), dtype=int)
    texts = to_coco_strings(encode_masks(masks))
    ids = paint_runs(texts, np.arange(len(masks)) + 1, shape).at(rows, columns)
    assert ids.dtype == np.int32
    assert ids.flags.c_contiguous
    full_map = painted(masks, range(len(masks)))
    np.testing.assert_array_equal(ids, full_map[rows][:, columns])
    if len(columns):
        required = range(columns.min(), columns.max() + 1)
        partial = paint_runs(texts, np.arange(len(masks)) + 1, shape, required)
        np.testing.assert_array_equal(partial.at(rows, columns), full_map[rows][:, columns])


def test_ids_need_not_be_ranks():
    masks = discs(4, (30, 40), seed=5)
    runs = paint_runs(to_coco_strings(encode_masks(masks)), [7, 300, 7, 70_000], (30, 40))
    expected = np.array([0, 7, 300, 7, 70_000])[painted(masks, range(4))]
    np.testing.assert_array_equal(runs.window(), expected)


def test_images_of_more_pixels_than_fit_thirty_two_bits():
    """The runs lie near the last pixel; no map of the whole image is made."""
    side = 70_000
    last = side * side - 1
    counts = [[last - 3, 2, 2], [0, 1, last], [last - 1, 2], [side * side]]
    runs = paint_runs(to_coco_strings(counts), [1, 2, 3, 4], (side, side))
    assert runs.rows.dtype == np.int32
    corner = runs.window((side - 5, side - 2, 5, 2))
    assert corner.T.tolist() == [[0] * 5, [0, 1, 1, 3, 3]]
    assert runs.at(np.array([0, 1]), np.array([0, side - 1])).tolist() == [[2, 0], [0, 0]]


def test_a_window_is_the_whole_image_by_default():
    assert checked_window(None, (6, 7)) == (0, 0, 6, 7)
    assert checked_window((1, 2, 0, 5), (6, 7)) == (1, 2, 0, 5)
    assert checked_window((1, 2, 3, 4), None) == (1, 2, 3, 4)


@pytest.mark.parametrize("window", [(-1, 0, 2, 2), (0, 0, 7, 1), (0, 5, 1, 3), (0, 0, 1, -1)])
def test_windows_outside_the_image_are_refused(window):
    with pytest.raises(ValueError, match=r"does not lie inside the image of size .*\(6, 7\)"):
        checked_window(window, (6, 7))
