"""Points inside masks that were already found."""

import numpy as np
import pytest
import torch
from random_sam import LOOSE, drawn_image, random_sam
from segment_anything import SamPredictor

from sfss_ray.masks.bank import run_lengths
from sfss_ray.masks.sam import candidates
from sfss_ray.masks.sam.candidates import Thresholds, find_candidates
from sfss_ray.masks.sam.crop import encode_crop
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.resize import PillowResize
from sfss_ray.masks.sam.skipping import contains, find_without_covered

THRESHOLDS = Thresholds(1.0, LOOSE["stability_score_thresh"], 1.0)


@pytest.fixture(scope="module")
def crop():
    with torch.no_grad():
        return encode_crop(SamPredictor(random_sam()), drawn_image(), torch.float32, PillowResize())


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(0).uniform((0, 0), (200, 150), (40, 2))


def test_points_in_a_mask_are_told_from_its_run_lengths():
    mask = np.random.default_rng(1).random((13, 9)) < 0.5
    counts = run_lengths.encode_masks([mask])[0]
    y, x = np.mgrid[:13, :9]
    points = np.stack([x.ravel() + 0.5, y.ravel() + 0.5], axis=1)
    assert contains(counts, points, 13).tolist() == mask.ravel().tolist()
    whole = run_lengths.encode_masks([np.ones((13, 9), dtype=bool)])[0]
    assert contains(whole, points, 13).all()


@torch.no_grad()
@pytest.mark.parametrize("in_batches", [False, True])
def test_no_point_lies_in_the_smallest_good_mask_of_an_earlier_point(
    crop, points, in_batches, monkeypatch
):
    monkeypatch.setattr(candidates, "_runs_mask_by_mask", lambda device: not in_batches)
    masks = find_without_covered(crop, points, 1, THRESHOLDS, 1.5)
    assert 1 <= len({tuple(p) for p in masks.points.tolist()}) < len(points)
    runs = masks.counts_in_image((0, 0), crop.size)
    smallest = {}
    for point, iou, counts in zip(
        masks.points.tolist(), masks.predicted_iou.tolist(), runs, strict=True
    ):
        mask = run_lengths.decode(counts, crop.size)
        x, y = (int(v) for v in point)
        for other, earlier in smallest.items():
            assert other == tuple(point) or not earlier[y, x]
        known = smallest.get(tuple(point))
        if iou >= 1.5 and (known is None or mask.sum() < known.sum()):
            smallest[tuple(point)] = mask
    assert smallest


@torch.no_grad()
def test_without_good_masks_no_point_is_skipped(crop, points):
    every = find_candidates(crop, points, 4, THRESHOLDS)
    masks = find_without_covered(crop, points, 4, THRESHOLDS, 1e9)
    assert sorted(map(tuple, masks.points.tolist())) == sorted(map(tuple, every.points.tolist()))


def test_the_option_gives_fewer_masks_and_is_off_by_default():
    settings = {**LOOSE, "pred_iou_thresh": 1.0}
    sam, image = random_sam(), drawn_image()
    every = AutomaticMaskGenerator(sam, **settings).generate(image)
    fewer = AutomaticMaskGenerator(sam, **settings, skip_covered_iou=1.0).generate(image)
    points = [{tuple(r["point_coords"][0]) for r in records} for records in (every, fewer)]
    assert 1 <= len(points[1]) < len(points[0])
    assert AutomaticMaskGenerator(sam).skip_covered_iou is None
