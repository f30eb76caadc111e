"""Records of masks: boxes from runs, and attributes that a file states or lacks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from amg_samples import record
from segment_anything.utils.amg import mask_to_rle_pytorch

from sfss_ray.errors import DataError
from sfss_ray.masks.importing.records import (
    MaskAttributes,
    attributes_of,
    bounding_box,
    check_size,
    mask_record,
    reason_of,
)


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((5, 4), bool),
        np.ones((5, 4), bool),
        np.eye(5, dtype=bool),
        np.pad(np.ones((2, 3), bool), ((1, 2), (3, 0))),
        np.pad(np.ones((1, 1), bool), ((0, 4), (2, 1))),
        np.indices((5, 4)).sum(0) % 2 == 1,
    ],
)
def test_boxes_are_those_of_the_pixels(mask: np.ndarray):
    runs = mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0]["counts"]
    assert bounding_box(np.array(runs), mask.shape[0]) == record(mask)["bbox"]


def test_boxes_of_random_masks_are_those_of_the_pixels():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(1, 9, 2)
        mask = rng.random((height, width)) < rng.choice([0.05, 0.3, 0.9])
        runs = mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0]["counts"]
        assert bounding_box(np.array(runs), height) == record(mask)["bbox"]


def test_missing_attributes_are_nan():
    for entry in ({}, dict.fromkeys(("predicted_iou", "stability_score", "point_coords"))):
        attributes = attributes_of(entry)
        assert all(math.isnan(number) for number in (*attributes.scores, *attributes.point))
        assert attributes.crop_box is None


@pytest.mark.parametrize("name", ["predicted_iou", "score", "confidence"])
def test_scores_of_detectors_take_the_place_of_a_predicted_iou(name):
    scores = attributes_of({name: 0.25, "stability_score": 1}).scores
    assert tuple(scores) == (0.25, 1.0)
    assert attributes_of({"score": 0.5, "predicted_iou": 0.75}).scores[0] == 0.75


def test_a_record_without_a_crop_box_is_of_the_whole_image():
    stored = mask_record(np.array([5, 3, 12]), "5300", (4, 5), MaskAttributes())
    assert stored["crop_box"] == [0, 0, 5, 4]
    # Pixels 5 to 7 are the lower three of the second column.
    assert (stored["area"], stored["bbox"]) == (3, [1, 1, 0, 2])


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (MaskAttributes(scores=(float("inf"), 1.0)), "infinite"),
        (MaskAttributes(point=(1.0, float("-inf"))), "infinite"),
        (MaskAttributes(point=(1.0,)), "a point has 2 numbers"),
        (MaskAttributes(crop_box=(0, 0, 1)), "a crop box 4"),
        (MaskAttributes(crop_box=(0, 0, float("nan"), 1)), "crop box is"),
        (MaskAttributes(crop_box=(0, 0, -1, 1)), "crop box is"),
    ],
)
def test_impossible_attributes_are_refused(attributes, reason):
    with pytest.raises(ValueError, match=reason):
        mask_record(np.array([20]), "D", (4, 5), attributes)


def test_sizes_in_errors_are_width_times_height():
    check_size([4, 5], (4, 5))
    with pytest.raises(DataError, match="it is 4x5 pixels, its image is 5x4"):
        check_size([5, 4], (4, 5))


def test_reasons_have_one_short_line():
    assert reason_of(ValueError("a\n b")) == "a b"
    assert reason_of(FileNotFoundError(2, "No such file")) == "No such file"
    assert reason_of(KeyError()) == "KeyError"
    assert len(reason_of(ValueError("x" * 999))) == 120
