"""Crop layouts, crop edges and suppression against segment_anything's functions."""

import numpy as np
import pytest
import torch
from segment_anything.utils.amg import generate_crop_boxes, is_box_near_crop_edge

from sfss_ray.masks.sam.boxes import crop_boxes, near_crop_edge, nms_indices, xyxy_to_xywh


@pytest.mark.parametrize("size", [(150, 200), (1024, 2048), (7, 3), (1, 1)])
@pytest.mark.parametrize(("n_layers", "overlap"), [(0, 0.3), (1, 512 / 1500), (3, 0.1)])
def test_crops_are_those_of_segment_anything(size, n_layers, overlap):
    boxes, layers = crop_boxes(size, n_layers, overlap)
    expected_boxes, expected_layers = generate_crop_boxes(size, n_layers, overlap)
    assert [list(box) for box in boxes] == expected_boxes
    assert layers == expected_layers


@pytest.mark.parametrize("crop", [(0, 0, 100, 80), (50, 0, 150, 80), (50, 40, 150, 120)])
def test_boxes_near_crop_edges_are_those_of_segment_anything(crop):
    rng = np.random.default_rng(0)
    width, height = crop[2] - crop[0], crop[3] - crop[1]
    corners = rng.integers(0, (width, height), (200, 2, 2))
    boxes = torch.tensor(np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1))
    near = near_crop_edge(boxes, crop, (120, 150))
    expected = is_box_near_crop_edge(boxes, list(crop), [0, 0, 150, 120])
    assert near.tolist() == expected.tolist()
    assert 0 < near.sum() < 200


def test_suppression_keeps_the_best_score_first():
    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 40, 40]])
    scores = torch.tensor([0.5, 0.9, 0.7])
    assert nms_indices(boxes, scores, 0.7).tolist() == [1, 2]
    assert nms_indices(boxes, scores, 0.9).tolist() == [1, 2, 0]
    assert nms_indices(boxes[:0], scores[:0], 0.7).tolist() == []


def test_boxes_are_converted_to_width_and_height():
    assert xyxy_to_xywh(torch.tensor([[3, 4, 10, 4]])).tolist() == [[3, 4, 7, 0]]
