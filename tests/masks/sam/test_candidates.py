"""Candidates of a crop: batches, filters and the memory for logits on a GPU."""

import math

import numpy as np
import pytest
import torch
from random_sam import CASES, LOOSE, StockDecoder, drawn_image, random_sam
from segment_anything import SamPredictor
from segment_anything.utils.amg import calculate_stability_score

from sfss_ray.masks.sam import candidates
from sfss_ray.masks.sam.candidates import Thresholds, find_candidates
from sfss_ray.masks.sam.crop import encode_crop
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.resize import PillowResize

NO_FILTER = Thresholds(pred_iou_thresh=-1.0, stability_score_thresh=0.0, stability_score_offset=1.0)
LOGIT_BYTES = 128 * 128 * 4  # of one mask


@pytest.fixture(scope="module")
def sam():
    return random_sam()


@pytest.fixture(scope="module")
def crop(sam):
    with torch.no_grad():
        return encode_crop(SamPredictor(sam), drawn_image(), torch.float32, PillowResize())


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(0).uniform((0, 0), (200, 150), (9, 2))


@pytest.fixture(params=[False, True], ids=["mask by mask", "in batches"])
def in_batches(request, monkeypatch):
    monkeypatch.setattr(candidates, "_runs_mask_by_mask", lambda device: not request.param)


@torch.no_grad()
def test_without_filters_each_point_has_three_masks_in_order(crop, points, in_batches):
    masks = find_candidates(crop, points, 4, NO_FILTER)
    assert masks.outputs.tolist() == [0, 1, 2] * 9
    np.testing.assert_array_equal(masks.points.numpy(), np.repeat(points, 3, axis=0))


@torch.no_grad()
def test_scores_are_those_of_the_stock_functions(sam, crop, points, in_batches):
    masks = find_candidates(crop, points, 64, NO_FILTER)
    stock = StockDecoder(sam, crop.decoder.embedding, torch.float32)
    decoded = stock.decode(crop.to_model_input(points), None)
    logits = sam.postprocess_masks(decoded.logits[:, None], crop.input_size, crop.size)[:, 0]
    expected = calculate_stability_score(logits, sam.mask_threshold, 1.0)
    torch.testing.assert_close(
        masks.stability_score, expected.float(), atol=5e-3, rtol=0, equal_nan=True
    )
    torch.testing.assert_close(
        masks.predicted_iou, decoded.predicted_iou.flatten(), atol=1e-4, rtol=1e-4
    )
    areas = [int(counts[1::2].sum()) for counts in masks.counts_in_image((0, 0), crop.size)]
    expected_areas = (logits > 0).sum(dim=(1, 2))
    np.testing.assert_allclose(areas, expected_areas, atol=2, rtol=1e-3)


@torch.no_grad()
def test_thresholds_select_among_the_unfiltered_masks(crop, points, in_batches):
    unfiltered = find_candidates(crop, points, 4, NO_FILTER)
    iou, stability = unfiltered.predicted_iou, unfiltered.stability_score
    thresholds = Thresholds(float(iou.median()), float(stability.nanmedian()), 1.0)
    passing = (iou > thresholds.pred_iou_thresh) & (stability >= thresholds.stability_score_thresh)
    filtered = find_candidates(crop, points, 4, thresholds)
    assert 0 < len(filtered.boxes) < 27
    expected = unfiltered.select(passing)
    assert filtered.outputs.tolist() == expected.outputs.tolist()
    assert filtered.points.tolist() == expected.points.tolist()
    assert filtered.boxes.tolist() == expected.boxes.tolist()


def test_candidates_are_selected_by_index_or_by_truth(crop, points):
    with torch.no_grad():
        masks = find_candidates(crop, points, 4, NO_FILTER)
    by_index = masks.select(torch.tensor([5, 2]))
    assert by_index.outputs.tolist() == [2, 2]
    assert [m is masks.masks.masks[k] for m, k in zip(by_index.masks.masks, (5, 2), strict=True)]
    by_truth = masks.select(torch.arange(27) % 3 == 1)
    assert by_truth.outputs.tolist() == [1] * 9
    assert len(by_truth.masks.masks) == 9


@torch.no_grad()
def test_the_score_of_an_empty_mask_is_nan_and_fails_every_threshold(points, in_batches):
    sam = random_sam()
    sam.mask_threshold = 1e9
    crop = encode_crop(SamPredictor(sam), drawn_image(), torch.float32, PillowResize())
    masks = find_candidates(crop, points, 4, NO_FILTER)
    assert all(math.isnan(score) for score in masks.stability_score.tolist())
    lowest = Thresholds(-1.0, 1e-9, 1.0)
    assert len(find_candidates(crop, points, 4, lowest).boxes) == 0


@pytest.mark.parametrize("case", ["quality filter", "crops", "no quality filter"])
@pytest.mark.parametrize("limit", [0, 3 * LOGIT_BYTES * 20])
def test_unstable_masks_are_dropped_early_if_there_are_many(sam, case, limit, monkeypatch):
    """The masks do not depend on it, and the logits in memory stay near the limit."""
    monkeypatch.setattr(candidates, "_runs_mask_by_mask", lambda device: False)
    settings = {**LOOSE, "points_per_batch": 5, "output_mode": "coco_rle", **CASES[case]}
    generator = AutomaticMaskGenerator(sam, **settings)
    expected = generator.generate(drawn_image())
    sizes, to_candidates = [], candidates._to_candidates
    monkeypatch.setattr(candidates, "_MAX_LOGIT_BYTES", limit)
    monkeypatch.setattr(
        candidates,
        "_to_candidates",
        lambda pending, *rest: (
            sizes.append(sum(p.nbytes for p in pending)) or to_candidates(pending, *rest)
        ),
    )
    assert generator.generate(drawn_image()) == expected
    assert len(expected) >= 5
    assert len(sizes) >= 2
    assert max(sizes) <= limit + 5 * 3 * LOGIT_BYTES
