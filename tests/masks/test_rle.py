"""The RLE functions against pycocotools and against painting whole masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco

from sfss_ray.config import AugmentConfig
from sfss_ray.data.augment import draw_geometry
from sfss_ray.masks import rle

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40))


def coco_rle(mask):
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))


def described(masks, sam_boxes=False):
    """Dicts as a dataset's column holds them; boxes by COCO's or by SAM's convention."""
    out = []
    for mask, text in zip(masks, rle.to_coco_strings(rle.encode_masks(masks)), strict=True):
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


@settings(max_examples=150, deadline=None)
@given(st.lists(MASKS, min_size=1, max_size=4))
def test_counts_and_strings_equal_pycocotools(masks):
    counts = [rle.encode_masks([mask])[0] for mask in masks]
    texts = rle.to_coco_strings(counts)
    for mask, c, text in zip(masks, counts, texts, strict=True):
        assert text.encode() == coco_rle(mask)["counts"]
        np.testing.assert_array_equal(rle.from_coco_string(text), c)
        np.testing.assert_array_equal(rle.decode(c, mask.shape), mask)
        assert rle.area(c) == mask.sum()


@settings(max_examples=150, deadline=None)
@given(MASKS, st.tuples(*[st.integers(0, 3)] * 4))
def test_a_region_is_encoded_as_the_whole_mask(region, margins):
    top, bottom, left, right = margins
    whole = np.pad(region, ((top, bottom), (left, right)))
    (counts,) = rle.encode_masks([region], [(top, left)], whole.shape)
    np.testing.assert_array_equal(counts, rle.encode_masks([whole])[0])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=30))
def test_strings_of_any_counts_equal_pycocotools(counts):
    total = sum(counts)
    if total < 2**32:  # pycocotools keeps counts in 32 bits
        expected = coco.frPyObjects({"size": [total, 1], "counts": counts}, total, 1)
        assert rle.to_coco_string(counts).encode() == expected["counts"]
    assert rle.from_coco_string(rle.to_coco_string(counts)).tolist() == counts


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [([], [12]), (list(range(12)), [0, 12]), ([0], [0, 1, 11]), ([11], [11, 1]), ([5], [5, 1, 6])],
    ids=["empty", "full", "first pixel", "last pixel", "one pixel"],
)
def test_simple_masks(pixels, expected):
    mask = np.zeros(12, dtype=bool)
    mask[pixels] = True
    mask = mask.reshape(4, 3).T  # column-major positions
    (counts,) = rle.encode_masks([mask])
    assert counts.tolist() == expected
    assert rle.to_coco_string(counts).encode() == coco_rle(mask)["counts"]


def test_no_masks():
    assert rle.encode_masks([]) == []
    assert rle.to_coco_strings([]) == []
    assert rle.paint_id_map([], [], window=(2, 3, 4, 5)).shape == (4, 5)
    assert not rle.paint_id_map([], [], image_size=(6, 7)).any()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_window_of_the_id_map_is_the_cut_out_id_map(data):
    shape = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    masks = data.draw(st.lists(arrays(bool, shape), min_size=1, max_size=5))
    order = data.draw(st.permutations(range(len(masks))))
    y0, x0 = data.draw(st.integers(0, shape[0])), data.draw(st.integers(0, shape[1]))
    h, w = data.draw(st.integers(0, shape[0] - y0)), data.draw(st.integers(0, shape[1] - x0))
    rles = described(masks, sam_boxes=data.draw(st.booleans()))
    got = rle.paint_id_map(rles, order, (y0, x0, h, w))
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, painted(masks, order)[y0 : y0 + h, x0 : x0 + w])


@pytest.mark.parametrize("painting", ["fine", "coarse"])
def test_many_masks_painted_over_each_other(painting):
    masks = blobs(60, (90, 120))
    rles = described(masks)
    order = rle.paint_order([r["area"] for r in rles], painting)
    np.testing.assert_array_equal(rle.paint_id_map(rles, order), painted(masks, order))
    got = rle.paint_id_map(rles, order, (10, 20, 50, 64))
    np.testing.assert_array_equal(got, painted(masks, order)[10:60, 20:84])


@pytest.mark.parametrize("painting", ["fine", "coarse"])
def test_zoomed_mirrored_crops_equal_pycocotools(painting):
    """A training crop from its window equals the crop of the map that pycocotools' masks make."""
    size = (256, 512)
    rles = described(blobs(50, size, seed=3), sam_boxes=True)
    order = rle.paint_order([r["area"] for r in rles], painting)
    whole = np.zeros(size, np.int32)
    for k in order:
        text = {"size": list(size), "counts": rles[k]["counts"].encode()}
        whole[coco.decode(text) > 0] = k + 1
    rng = np.random.default_rng(0)
    for _ in range(10):
        geometry = draw_geometry(AugmentConfig(crop_size=(160, 160)), size, rng)
        window = geometry.window(size)
        ids = rle.paint_id_map(rles, order, window)
        got = geometry.apply_to_ids(ids, size, origin=window[:2])
        np.testing.assert_array_equal(got, geometry.apply_to_ids(whole, size))
        assert len(np.unique(got)) > 3


def test_more_masks_than_sixteen_bits_count():
    """One pixel each: 70,000 masks, of which every third is painted over by a later one."""
    n = 70_000
    position = np.arange(n) // 3
    rank = np.arange(n)
    got = rle._paint_pieces(n, rank, position, np.ones(n, np.int64))
    expected = np.zeros(n, np.int32)
    expected[position] = rank + 1
    np.testing.assert_array_equal(got, expected)


def test_masks_left_out_of_the_order_are_not_painted():
    masks = blobs(5, (30, 30))
    np.testing.assert_array_equal(
        rle.paint_id_map(described(masks), [3, 1]), painted(masks, [3, 1])
    )


def test_paint_order_and_its_ties():
    assert rle.paint_order([5, 9, 5, 1], "fine").tolist() == [1, 0, 2, 3]
    assert rle.paint_order([5, 9, 5, 1], "coarse").tolist() == [3, 0, 2, 1]
    with pytest.raises(ValueError, match=r"'big'.*fine"):
        rle.paint_order([1], "big")


def test_masks_outside_the_window_are_not_parsed():
    broken = {"counts": "not RLE!", "height": 20, "width": 20, "bbox": [0, 0, 3, 3], "area": 9}
    assert not rle.paint_id_map([broken], [0], (10, 10, 5, 5)).any()
    with pytest.raises(ValueError, match="not a COCO RLE string"):
        rle.paint_id_map([broken], [0], (0, 0, 5, 5))


def test_errors_name_the_value():
    good = described(blobs(1, (20, 20)))[0]
    with pytest.raises(ValueError, match=r"window .*\(0, 0, 21, 5\)"):
        rle.paint_id_map([good], [0], (0, 0, 21, 5))
    with pytest.raises(ValueError, match="400 pixels"):
        rle.decode([3, 4], (20, 20))
    with pytest.raises(ValueError, match="do not sum to the 440 pixels"):
        rle.paint_id_map([{**good, "width": 22, "bbox": [0, 0, 9, 9]}], [0])
    with pytest.raises(ValueError, match="different image sizes"):
        rle.paint_id_map([good, {**good, "width": 21}], [0])
    with pytest.raises(ValueError, match="does not fit"):
        rle.encode_masks([np.ones((3, 3), bool)], [(18, 0)], (20, 20))
    with pytest.raises(ValueError, match="window or image_size"):
        rle.paint_id_map([], [])
    with pytest.raises(ValueError, match="not a COCO RLE string"):
        rle.from_coco_string("1P")  # stops inside a number
