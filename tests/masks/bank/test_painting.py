"""Painted masks against painting whole masks pixel by pixel, and against pycocotools."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from sfss_ray.config import AugmentConfig
from sfss_ray.data.augment import draw_geometry
from sfss_ray.masks.bank.painting import paint_id_map, paint_order, paint_runs
from sfss_ray.masks.bank.run_lengths import encode_masks, to_coco_string, to_coco_strings


def coco_rle(mask):
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))


def described(masks, sam_boxes=False):
    """Dicts as a dataset's column holds them; boxes by COCO's or by SAM's convention."""
    out = []
    for mask, text in zip(masks, to_coco_strings(encode_masks(masks)), strict=True):
        x, y, w, h = (int(v) for v in coco.toBbox(coco_rle(mask)))
        less = int(sam_boxes and w > 0)
        height, width = mask.shape
        out.append(
            {
                "counts": text,
                "height": height,
                "width": width,
                "bbox": [x, y, w - less, h - less],
                "area": int(mask.sum()),
            }
        )
    return out


def painted(masks, order):
    out = np.zeros(masks[0].shape, dtype=np.int32)
    for k in order:
        out[masks[k]] = k + 1
    return out


def blobs(n, shape, seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    masks = []
    for _ in range(n):
        cy, cx, r = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(2, 30)
        masks.append((np.hypot(y - cy, x - cx) < r) & (rng.random(shape) < 0.9))
    return masks


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_window_of_the_id_map_is_the_cut_out_id_map(data):
    shape = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    masks = data.draw(st.lists(arrays(bool, shape), min_size=1, max_size=5))
    order = data.draw(st.permutations(range(len(masks))))
    y0, x0 = data.draw(st.integers(0, shape[0])), data.draw(st.integers(0, shape[1]))
    h, w = data.draw(st.integers(0, shape[0] - y0)), data.draw(st.integers(0, shape[1] - x0))
    rles = described(masks, sam_boxes=data.draw(st.booleans()))
    got = paint_id_map(rles, order, (y0, x0, h, w))
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, painted(masks, order)[y0 : y0 + h, x0 : x0 + w])


@pytest.mark.parametrize("painting", ["fine", "coarse"])
def test_many_masks_painted_over_each_other(painting):
    masks = blobs(60, (90, 120))
    rles = described(masks)
    order = paint_order([r["area"] for r in rles], painting)
    np.testing.assert_array_equal(paint_id_map(rles, order), painted(masks, order))
    got = paint_id_map(rles, order, (10, 20, 50, 64))
    np.testing.assert_array_equal(got, painted(masks, order)[10:60, 20:84])


@pytest.mark.parametrize("painting", ["fine", "coarse"])
def test_zoomed_mirrored_crops_equal_pycocotools(painting):
    """A training crop from its window equals the crop of the map that pycocotools' masks make."""
    size = (256, 512)
    rles = described(blobs(50, size, seed=3), sam_boxes=True)
    order = paint_order([r["area"] for r in rles], painting)
    whole = np.zeros(size, np.int32)
    for k in order:
        text = {"size": list(size), "counts": rles[k]["counts"].encode()}
        whole[coco.decode(text) > 0] = k + 1
    runs = paint_runs([rles[k]["counts"] for k in order], order + 1, size)
    rng = np.random.default_rng(0)
    for _ in range(10):
        geometry = draw_geometry(AugmentConfig(crop_size=(160, 160)), size, rng)
        expected = geometry.apply_to_ids(whole, size)
        np.testing.assert_array_equal(runs.at(*geometry.nearest_pixels(size)), expected)
        window = geometry.window(size)
        ids = paint_id_map(rles, order, window)
        got = geometry.apply_to_ids(ids, size, origin=window[:2])
        np.testing.assert_array_equal(got, expected)
        assert len(np.unique(got)) > 3


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_rows_and_columns_are_those_of_the_whole_map(data):
    shape = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    masks = data.draw(st.lists(arrays(bool, shape), min_size=1, max_size=5))
    rows = np.sort(data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=20))).astype(int)
    columns = np.array(data.draw(st.lists(st.integers(0, shape[1] - 1), max_size=20)), dtype=int)
    texts = to_coco_strings(encode_masks(masks))
    got = paint_runs(texts, np.arange(len(masks)) + 1, shape).at(rows, columns)
    assert got.dtype == np.int32
    assert got.flags.c_contiguous
    whole = painted(masks, range(len(masks)))
    np.testing.assert_array_equal(got, whole[rows][:, columns])
    if len(columns):
        needed = range(columns.min(), columns.max() + 1)
        some = paint_runs(texts, np.arange(len(masks)) + 1, shape, needed)
        np.testing.assert_array_equal(some.at(rows, columns), whole[rows][:, columns])


def test_ids_need_not_be_ranks():
    masks = blobs(4, (30, 40), seed=5)
    runs = paint_runs(to_coco_strings(encode_masks(masks)), [7, 300, 7, 70_000], (30, 40))
    expected = np.array([0, 7, 300, 7, 70_000])[painted(masks, range(4))]
    np.testing.assert_array_equal(runs.window(), expected)


@pytest.mark.parametrize("number", [63, 64, 65, 128, 129, 255, 256])
def test_as_many_masks_as_fill_a_set_of_bits(number):
    """Mask k covers the first number - k pixels, then again all but k: each shows in some pixel."""
    masks = [np.arange(number)[None] < number - k for k in range(number)]
    for shown in (masks, masks[::-1], [~mask for mask in masks]):
        runs = paint_runs(
            to_coco_strings(encode_masks(shown)),
            np.arange(number) + 1,
            (1, number),
        )
        np.testing.assert_array_equal(runs.window(), painted(shown, range(number)))


def test_more_masks_than_sixteen_bits_count():
    """One pixel each: 70,000 masks, of which two thirds are painted over by a later one."""
    n = 70_000
    position = np.arange(n) // 3
    counts = [[p, 1, n - p - 1] for p in position]
    got = paint_runs(to_coco_strings(counts), np.arange(n) + 1, (700, 100)).window()
    expected = np.zeros(n, np.int32)
    expected[position] = np.arange(n) + 1
    np.testing.assert_array_equal(got, expected.reshape(100, 700).T)


def test_images_of_more_pixels_than_thirty_two_bits_count():
    """Known runs near the last pixel: no map of the whole image is ever made."""
    side = 70_000
    last = side * side - 1
    counts = [[last - 3, 2, 2], [0, 1, last], [last - 1, 2], [side * side]]
    runs = paint_runs(to_coco_strings(counts), [1, 2, 3, 4], (side, side))
    assert runs.rows.dtype == np.int32
    corner = runs.window((side - 5, side - 2, 5, 2))
    assert corner.T.tolist() == [[0] * 5, [0, 1, 1, 3, 3]]
    assert runs.at(np.array([0, 1]), np.array([0, side - 1])).tolist() == [[2, 0], [0, 0]]


def test_nothing_is_painted_of_no_masks():
    for window in ((2, 3, 4, 5), (0, 0, 0, 0)):
        assert paint_id_map([], [], window=window).shape == window[2:]
    assert not paint_id_map([], [], image_size=(6, 7)).any()
    runs = paint_runs([], [], (6, 7))
    assert runs.window().shape == (6, 7)
    assert not runs.window().any()
    for size in ((0, 0), (0, 3), (3, 0)):
        assert paint_runs([], [], size).window().shape == size


def test_runs_take_less_memory_than_the_map():
    masks = blobs(40, (200, 300), seed=8)
    runs = paint_runs(to_coco_strings(encode_masks(masks)), np.arange(40) + 1, (200, 300))
    assert (runs.rows.dtype, runs.ids.dtype, runs.offsets.dtype) == (np.uint8, np.uint8, np.int32)
    assert runs.nbytes == 301 * 4 + 2 * len(runs.ids)
    map_changes = np.count_nonzero(np.diff(runs.window(), axis=0))
    assert len(runs.ids) == map_changes + 300  # no run that is not needed
    assert paint_runs([], [], (256, 1)).rows.dtype == np.uint16


def test_masks_left_out_of_the_order_are_not_painted():
    masks = blobs(5, (30, 30))
    np.testing.assert_array_equal(paint_id_map(described(masks), [3, 1]), painted(masks, [3, 1]))


def test_paint_order_and_its_ties():
    assert paint_order([5, 9, 5, 1], "fine").tolist() == [1, 0, 2, 3]
    assert paint_order([5, 9, 5, 1], "coarse").tolist() == [3, 0, 2, 1]
    with pytest.raises(ValueError, match=r"'big'.*fine"):
        paint_order([1], "big")


def test_masks_outside_the_window_are_not_parsed():
    broken = {"counts": "not RLE!", "height": 20, "width": 20, "bbox": [0, 0, 3, 3], "area": 9}
    assert not paint_id_map([broken], [0], (10, 10, 5, 5)).any()
    with pytest.raises(ValueError, match="not a COCO RLE string"):
        paint_id_map([broken], [0], (0, 0, 5, 5))


def test_errors_name_the_value():
    good = described(blobs(1, (20, 20)))[0]
    with pytest.raises(ValueError, match=r"window .*\(0, 0, 21, 5\)"):
        paint_id_map([good], [0], (0, 0, 21, 5))
    with pytest.raises(ValueError, match="do not sum to the 440 pixels"):
        paint_id_map([{**good, "width": 22, "bbox": [0, 0, 9, 9]}], [0])
    with pytest.raises(ValueError, match="different image sizes"):
        paint_id_map([good, {**good, "width": 21}], [0])
    with pytest.raises(ValueError, match="window or image_size"):
        paint_id_map([], [])
    with pytest.raises(ValueError, match="do not sum to the 400 pixels"):
        paint_runs([good["counts"], ""], [1, 2], (20, 20))
    with pytest.raises(ValueError, match="do not sum to the 400 pixels"):
        paint_runs([to_coco_string([5, -2, 397])], [1], (20, 20))


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
        ([1, 0], [0], "growing order"),
    ):
        with pytest.raises(ValueError, match=match):
            runs.at(np.array(rows), np.array(columns))
    assert runs.at(np.array([0, 4]), np.array([11, 0, 0])).shape == (2, 3)
