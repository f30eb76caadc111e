"""Painted masks against painting whole masks pixel by pixel, and against pycocotools."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from painted_masks import discs, painted
from pycocotools import mask as coco

from sfss_ray.config import AugmentConfig
from sfss_ray.data.augment import draw_geometry
from sfss_ray.masks.bank.painting import paint_id_map, paint_image, paint_order, paint_runs
from sfss_ray.masks.bank.run_lengths import encode_masks, to_coco_string, to_coco_strings


def coco_rle(mask):
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))


def to_rles(masks, sam_boxes=False):
    """Return dicts for paint_id_map, with boxes in COCO's or SAM's convention."""
    rles = []
    for mask, text in zip(masks, to_coco_strings(encode_masks(masks)), strict=True):
        x, y, w, h = (int(v) for v in coco.toBbox(coco_rle(mask)))
        shrink = int(sam_boxes and w > 0)
        height, width = mask.shape
        rles.append(
            {
                "counts": text,
                "height": height,
                "width": width,
                "bbox": [x, y, w - shrink, h - shrink],
                "area": int(mask.sum()),
            }
        )
    return rles


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_window_of_the_id_map_is_a_crop_of_the_id_map(data):
    shape = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    masks = data.draw(st.lists(arrays(bool, shape), min_size=1, max_size=5))
    order = data.draw(st.permutations(range(len(masks))))
    y0, x0 = data.draw(st.integers(0, shape[0])), data.draw(st.integers(0, shape[1]))
    h, w = data.draw(st.integers(0, shape[0] - y0)), data.draw(st.integers(0, shape[1] - x0))
    rles = to_rles(masks, sam_boxes=data.draw(st.booleans()))
    ids = paint_id_map(rles, order, (y0, x0, h, w))
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, painted(masks, order)[y0 : y0 + h, x0 : x0 + w])


@pytest.mark.parametrize("painting", ["fine", "coarse"])
def test_many_masks_painted_over_each_other(painting):
    masks = discs(60, (90, 120))
    rles = to_rles(masks)
    order = paint_order([r["area"] for r in rles], painting)
    np.testing.assert_array_equal(paint_id_map(rles, order), painted(masks, order))
    ids = paint_id_map(rles, order, (10, 20, 50, 64))
    np.testing.assert_array_equal(ids, painted(masks, order)[10:60, 20:84])


@pytest.mark.parametrize("painting", ["fine", "coarse"])
def test_zoomed_mirrored_crops_equal_pycocotools(painting):
    """A training crop from its window equals the crop of the map that pycocotools' masks make."""
    size = (256, 512)
    rles = to_rles(discs(50, size, seed=3), sam_boxes=True)
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
        crop = geometry.apply_to_ids(ids, size, origin=window[:2])
        np.testing.assert_array_equal(crop, expected)
        assert len(np.unique(crop)) > 3


@pytest.mark.parametrize("number", [63, 64, 65, 128, 129, 255, 256])
def test_numbers_of_masks_around_a_full_set_of_bits(number):
    """Mask k covers the first number - k pixels, so that each mask is visible in some pixel."""
    masks = [np.arange(number)[None] < number - k for k in range(number)]
    for stack in (masks, masks[::-1], [~mask for mask in masks]):
        runs = paint_runs(
            to_coco_strings(encode_masks(stack)),
            np.arange(number) + 1,
            (1, number),
        )
        np.testing.assert_array_equal(runs.window(), painted(stack, range(number)))


def test_more_masks_than_fit_sixteen_bits():
    """70,000 masks of one pixel; later masks cover two thirds of them."""
    n = 70_000
    position = np.arange(n) // 3
    counts = [[p, 1, n - p - 1] for p in position]
    ids = paint_runs(to_coco_strings(counts), np.arange(n) + 1, (700, 100)).window()
    expected = np.zeros(n, np.int32)
    expected[position] = np.arange(n) + 1
    np.testing.assert_array_equal(ids, expected.reshape(100, 700).T)


def test_no_masks_give_an_empty_map():
    for window in ((2, 3, 4, 5), (0, 0, 0, 0)):
        assert paint_id_map([], [], window=window).shape == window[2:]
    assert not paint_id_map([], [], image_size=(6, 7)).any()
    runs = paint_runs([], [], (6, 7))
    assert runs.window().shape == (6, 7)
    assert not runs.window().any()
    for size in ((0, 0), (0, 3), (3, 0)):
        assert paint_runs([], [], size).window().shape == size


def test_masks_missing_in_the_order_are_not_painted():
    masks = discs(5, (30, 30))
    np.testing.assert_array_equal(paint_id_map(to_rles(masks), [3, 1]), painted(masks, [3, 1]))


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
    good = to_rles(discs(1, (20, 20)))[0]
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


def test_columns_of_an_image_are_painted_without_parsing_masks_beside_them():
    masks = discs(30, (40, 90), seed=2)
    rles = to_rles(masks, sam_boxes=True)
    texts = [rle["counts"] for rle in rles]
    areas = np.array([rle["area"] for rle in rles])
    boxes = np.array([rle["bbox"] for rle in rles], np.int32)
    expected = painted(masks, paint_order(areas, "coarse"))
    columns = range(25, 41)
    beside = (boxes[:, 0] >= 41) | (boxes[:, 0] + boxes[:, 2] < 25)
    assert 0 < beside.sum() < 30
    texts = ["not RLE!" if skip else text for text, skip in zip(texts, beside, strict=True)]
    runs = paint_image(texts, areas, boxes, (40, 90), "coarse", columns)
    rows = np.arange(40)
    np.testing.assert_array_equal(runs.at(rows, np.arange(25, 41)), expected[:, 25:41])
    clipped = paint_image([], areas[:0], boxes[:0], (40, 90), "fine", range(-5, 100))
    assert clipped.columns == range(90)
