"""Removal of small holes and islands against segment_anything's function."""

import numpy as np
import pytest
from segment_anything.utils.amg import remove_small_regions as remove_by_stock

from sfss_ray.masks.sam.small_regions import remove_small_regions


@pytest.mark.parametrize("min_area", [1, 3, 12, 10_000])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.8])
def test_random_masks_are_cleaned_as_by_segment_anything(min_area, density):
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (9, 14), (40, 25)):
        mask = rng.random(shape) < density
        filled, has_holes = remove_by_stock(mask, min_area, mode="holes")
        expected, has_islands = remove_by_stock(filled, min_area, mode="islands")
        cleaned, changed = remove_small_regions(mask, min_area)
        np.testing.assert_array_equal(cleaned, expected)
        assert changed == (has_holes or has_islands)


def test_the_largest_of_small_islands_stays():
    mask = np.zeros((8, 8), bool)
    mask[1, 1:4] = mask[5:7, 5:7] = True
    cleaned, changed = remove_small_regions(mask, 10)
    assert changed
    assert cleaned.sum() == 4
    assert cleaned[5:7, 5:7].all()


def test_a_clean_mask_is_returned_unchanged():
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    cleaned, changed = remove_small_regions(mask, 5)
    assert not changed
    np.testing.assert_array_equal(cleaned, mask)
