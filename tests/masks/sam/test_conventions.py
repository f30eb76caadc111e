"""Suppression and points of the two conventions."""

import numpy as np
import pytest
import torch
from random_sam import LOOSE, drawn_image, random_sam
from segment_anything import SamPredictor
from segment_anything.utils.amg import build_point_grid

from sfss_ray.masks.bank import run_lengths
from sfss_ray.masks.sam import conventions
from sfss_ray.masks.sam.candidates import Thresholds
from sfss_ray.masks.sam.conventions import (
    CropRequest,
    ImageRequest,
    Suppression,
    masks_of_image,
    masks_of_pipeline,
)
from sfss_ray.masks.sam.resize import PillowResize
from sfss_ray.masks.sam.segment_anything_model import SegmentAnythingModel

SIZE = (150, 200)


@pytest.fixture(scope="module")
def request_of():
    """Build the request for an image and one crop of it."""
    model = SegmentAnythingModel(SamPredictor(random_sam()), PillowResize())
    image, grid = drawn_image(*SIZE), build_point_grid(5)

    def build(within=1.0, between=1.0, crops=2):
        boxes = [(0, 0, 200, 150), (60, 30, 200, 150)][:crops]
        requests = [
            CropRequest(
                box,
                grid,
                lambda b=box: model.encode(image[b[1] : b[3], b[0] : b[2]], torch.float32),
            )
            for box in boxes
        ]
        thresholds = Thresholds(0.0, LOOSE["stability_score_thresh"], 1.0)
        return ImageRequest(SIZE, requests, 64, thresholds, Suppression(within, between))

    return build


@torch.no_grad()
def test_segment_anything_keeps_the_order_of_crops_and_drops_within_each(request_of):
    every = masks_of_image(request_of())
    assert len({tuple(box) for box in every.crop_boxes.tolist()}) == 2
    fewer = masks_of_image(request_of(within=0.3))
    assert 2 <= len(fewer.counts) < len(every.counts)


@torch.no_grad()
def test_the_pipeline_ignores_crops_and_orders_all_masks_by_their_scores(request_of):
    masks = masks_of_pipeline(request_of(within=0.0))
    assert len({tuple(box) for box in masks.crop_boxes.tolist()}) == 2
    scores = masks.predicted_iou
    assert torch.equal(scores, scores.sort(descending=True).values)
    fewer = masks_of_pipeline(request_of(between=0.3))
    assert 1 <= len(fewer.counts) < len(masks.counts)
    assert torch.equal(fewer.predicted_iou, fewer.predicted_iou.sort(descending=True).values)


@torch.no_grad()
def test_run_lengths_of_the_pipeline_belong_to_their_boxes(request_of):
    masks = masks_of_pipeline(request_of())
    for counts, box in zip(masks.counts, masks.boxes.tolist(), strict=True):
        y, x = np.nonzero(run_lengths.decode(counts, SIZE))
        assert [x.min(), y.min(), x.max(), y.max()] == box


def test_the_grid_in_single_precision_is_that_of_torch():
    grid = conventions._single_precision_grid(build_point_grid(7))
    side = torch.linspace(1 / 14, 1 - 1 / 14, 7)
    expected = torch.stack([side.repeat(7), side.repeat_interleave(7)], dim=1)
    assert grid.dtype == np.float32
    assert torch.equal(torch.from_numpy(grid), expected)
    other = np.array([[0.25, 0.5], [0.1, 0.2]])
    np.testing.assert_array_equal(
        conventions._single_precision_grid(other), other.astype(np.float32)
    )


@torch.no_grad()
def test_the_pipeline_scales_points_as_with_padding(request_of):
    crop = request_of().crops[0].encode()
    # 256 pixels for the longer side of 200: 150 become 192.
    assert conventions._scale_with_padding(crop) == (256 / 200, 192 / 150)
