"""Place and size of masks against a slow loop over the pixels of the id map."""

import numpy as np
import pytest
from painted_masks import discs, painted
from train_samples import write_masks

from sfss_ray.masks.bank.geometry import mask_geometry
from sfss_ray.masks.bank.painting import paint_runs
from sfss_ray.masks.bank.run_lengths import encode_masks, to_coco_strings
from sfss_ray.masks.bank.store import MaskStore

SIZE = (60, 90)


def runs_of(masks, order=None):
    """Paint masks in an order, by default as they are listed."""
    order = list(range(len(masks))) if order is None else order
    counts = to_coco_strings(encode_masks([masks[k] for k in order]))
    return paint_runs(counts, np.array(order) + 1, masks[0].shape)


def slow_geometry(ids: np.ndarray, mask: int) -> list[float]:
    """Integrate over the pixels as squares: each adds the variance of a position within it."""
    height, width = ids.shape
    ys, xs = (ids == mask).nonzero()
    rows, columns = (ys + 0.5) / height, (xs + 0.5) / width
    row_spread = np.sqrt(rows.var() + 1 / 12 / height**2)
    column_spread = np.sqrt(columns.var() + 1 / 12 / width**2)
    return [rows.mean(), row_spread, column_spread, np.log(len(ys) / ids.size)]


def test_geometry_is_that_of_a_slow_loop():
    masks = discs(12, SIZE, seed=3)
    ids = painted(masks, range(12))
    geometry = mask_geometry(runs_of(masks), 12)
    assert geometry.shape == (13, 4)
    visible = set(np.unique(ids).tolist()) - {0}
    assert len(visible) > 6
    for mask in range(1, 13):
        expected = slow_geometry(ids, mask) if mask in visible else [0, 0, 0, 0]
        np.testing.assert_allclose(geometry[mask], expected, rtol=1e-5, atol=1e-6)
    assert not geometry[0].any()


def test_a_mask_that_others_cover_has_zeros():
    small, large = np.zeros(SIZE, bool), np.ones(SIZE, bool)
    small[10:20, 10:20] = True
    geometry = mask_geometry(runs_of([small, large]), 2)
    assert not geometry[1].any()
    np.testing.assert_allclose(geometry[2], [0.5, 12**-0.5, 12**-0.5, 0], atol=1e-6)


@pytest.mark.parametrize("factor", [2, 3])
def test_resolution_does_not_matter(factor):
    masks = discs(8, SIZE, seed=5)
    larger = [np.kron(mask, np.ones((factor, factor), bool)) for mask in masks]
    np.testing.assert_allclose(
        mask_geometry(runs_of(larger), 8), mask_geometry(runs_of(masks), 8), rtol=1e-5, atol=1e-6
    )


def test_mirroring_does_not_matter():
    masks = discs(8, SIZE, seed=6)
    mirrored = [mask[:, ::-1].copy() for mask in masks]
    np.testing.assert_allclose(
        mask_geometry(runs_of(mirrored), 8), mask_geometry(runs_of(masks), 8), rtol=1e-5, atol=1e-6
    )


def test_an_image_without_masks_has_only_row_zero(tmp_path):
    store = MaskStore(write_masks(tmp_path, {"a": []}, SIZE))
    assert store.geometry("a").tolist() == [[0, 0, 0, 0]]


def test_a_store_paints_the_smallest_mask_on_top(tmp_path):
    large, small = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    large[:30], small[10:20, 30:60] = True, True
    geometry = MaskStore(write_masks(tmp_path, {"a": [small, large]}, SIZE)).geometry("a")
    ids = painted([small, large], [1, 0])
    for mask in (1, 2):
        np.testing.assert_allclose(geometry[mask], slow_geometry(ids, mask), rtol=1e-5)
