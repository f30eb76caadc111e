"""Run lengths and COCO strings against pycocotools."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco

from sfss_ray.masks.bank import run_lengths

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40))


def coco_rle(mask):
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))


@settings(max_examples=150, deadline=None)
@given(st.lists(MASKS, min_size=1, max_size=4))
def test_counts_and_strings_equal_pycocotools(masks):
    counts = [run_lengths.encode_masks([mask])[0] for mask in masks]
    texts = run_lengths.to_coco_strings(counts)
    for mask, c, text in zip(masks, counts, texts, strict=True):
        assert text.encode() == coco_rle(mask)["counts"]
        np.testing.assert_array_equal(run_lengths.from_coco_string(text), c)
        np.testing.assert_array_equal(run_lengths.decode(c, mask.shape), mask)
        assert run_lengths.area(c) == mask.sum()


@settings(max_examples=150, deadline=None)
@given(MASKS, st.tuples(*[st.integers(0, 3)] * 4))
def test_a_region_is_encoded_as_the_whole_mask(region, margins):
    top, bottom, left, right = margins
    whole = np.pad(region, ((top, bottom), (left, right)))
    (counts,) = run_lengths.encode_masks([region], [(top, left)], whole.shape)
    np.testing.assert_array_equal(counts, run_lengths.encode_masks([whole])[0])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=30))
def test_strings_of_any_counts_equal_pycocotools(counts):
    total = sum(counts)
    # pycocotools stores counts in 32 bits and reserves six characters for each, the zero at the end
    # included. So it writes outside its buffer where every difference takes six, above 24 bits.
    if total < 2**32 and max(counts) < 2**24:
        expected = coco.frPyObjects({"size": [total, 1], "counts": counts}, total, 1)
        assert run_lengths.to_coco_string(counts).encode() == expected["counts"]
    assert run_lengths.from_coco_string(run_lengths.to_coco_string(counts)).tolist() == counts


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [([], [12]), (list(range(12)), [0, 12]), ([0], [0, 1, 11]), ([11], [11, 1]), ([5], [5, 1, 6])],
    ids=["empty", "full", "first pixel", "last pixel", "one pixel"],
)
def test_simple_masks(pixels, expected):
    mask = np.zeros(12, dtype=bool)
    mask[pixels] = True
    mask = mask.reshape(4, 3).T  # column-major positions
    (counts,) = run_lengths.encode_masks([mask])
    assert counts.tolist() == expected
    assert run_lengths.to_coco_string(counts).encode() == coco_rle(mask)["counts"]


def test_no_masks_give_empty_results():
    assert run_lengths.encode_masks([]) == []
    assert run_lengths.to_coco_strings([]) == []
    assert [array.tolist() for array in run_lengths.from_coco_strings([])] == [[], [0]]


def test_strings_of_many_masks_are_read_together():
    counts = [[12], [0, 12], [5, 1, 6], [0, 1, 1, 1, 900, 40, 2, 70000]]
    flat, starts = run_lengths.from_coco_strings(run_lengths.to_coco_strings(counts))
    assert starts.tolist() == [0, 1, 3, 6, 14]
    assert flat.tolist() == [n for mask_counts in counts for n in mask_counts]


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="400 pixels"):
        run_lengths.decode([3, 4], (20, 20))
    with pytest.raises(ValueError, match="does not fit"):
        run_lengths.encode_masks([np.ones((3, 3), bool)], [(18, 0)], (20, 20))


@pytest.mark.parametrize("text", ["1P", "5/", "5p", "5é", " "], ids=repr)
def test_other_strings_are_refused(text):
    with pytest.raises(ValueError, match="not a COCO RLE string"):
        run_lengths.from_coco_string(text)
    with pytest.raises(ValueError, match="not a COCO RLE string"):
        run_lengths.from_coco_strings(["<", text, "<"])
