"""Scores of labels that whole masks get, against their definitions."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch


@pytest.fixture
def mask_labels(experiment):
    return experiment("mask_labels")


TRUTH = torch.tensor(
    [
        [30.0, 2.0, 0.0],
        [0.0, 50.0, 0.0],
        [0.0, 5.0, 40.0],
        [0.0, 0.0, 0.0],  # a mask on pixels without a label
        [90.0, 0.0, 0.0],
    ]
)


def labelled(mask_labels, evidence: torch.Tensor, images: list[int], spaces=None):
    return mask_labels.LabelledMasks(evidence, spaces or {}, torch.tensor(images), TRUTH)


def test_iou_counts_pixels_and_leaves_absent_classes_out(mask_labels):
    labels = torch.tensor([0, 1, 1, 2, 1])
    ious = mask_labels.class_ious(TRUTH, labels)
    assert ious[0] == pytest.approx(30 / (30 + 2 + 90))
    assert ious[1] == pytest.approx(55 / (57 + 40 + 90))
    assert ious[2] == 0
    assert math.isnan(mask_labels.class_ious(TRUTH[:, [0, 1]][:1] * 0, labels[:1])[0])


def test_scores_of_masks_ignore_those_without_labelled_pixels(mask_labels):
    masks = labelled(mask_labels, torch.zeros(5, 3), [0, 0, 1, 1, 1])
    labels = torch.tensor([0, 1, 1, 2, 1])
    scores = masks.score(labels)
    ious = mask_labels.class_ious(TRUTH, labels)
    assert scores["miou"] == pytest.approx(100 * sum(ious) / 3)
    of_majority = [32 / (32 + 90), 50 / (50 + 45 + 90), 0]  # masks 0 and 4 are all of class 0
    assert scores["miou_of_majority"] == pytest.approx(100 * sum(of_majority) / 3)
    assert scores["accuracy"] == pytest.approx(50)  # masks 0 and 1 of 0, 1, 2 and 4
    assert scores["class_accuracy"] == pytest.approx(100 * (1 / 2 + 1 + 0) / 3)
    by_size = mask_labels.by_size(masks, labels)
    small = [30 / 32, 55 / 97, 0.0]
    assert by_size == {
        "mIoU up to 64 px": pytest.approx(100 * sum(small) / 3),
        "mIoU up to 256 px": 0,
    }


def test_a_class_prior_is_divided_out(mask_labels):
    masks = labelled(mask_labels, torch.tensor([[2.0, 1.9, -9.0]]).expand(5, 3), [0] * 5)
    prior = torch.tensor([0.9, 0.1, 0.0])
    assert masks.evidence.argmax(1).tolist() == [0] * 5
    corrected = masks.corrected_for(prior, 0.25)
    assert corrected.evidence.argmax(1).tolist() == [1] * 5
    expected = masks.evidence[0, 0] - 0.25 * math.log(0.9)
    assert corrected.evidence[0, 0] == pytest.approx(expected)


def test_neighbours_of_other_images_correct_a_mask_and_the_table_has_every_space(mask_labels):
    """Mask 0 is like masks 2 and 3, which stand in another image and have class 1."""
    sure, prototype = 4.0, "nearest class prototype"
    evidence = torch.tensor(
        [[0.2, 0.0, -1.0], [sure, 0.0, 0.0], [0.0, sure, 0.0], [0.0, sure, 0.0], [sure, 0.0, 0.0]]
    )
    place = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.92, 0.12], [0.88, 0.11], [0.12, 0.88]])
    masks = labelled(
        mask_labels, evidence, [0, 0, 1, 1, 1], {"geometry": (place,), "features": (place,)}
    )
    labels = mask_labels.all_labels(masks)
    assert labels["vote", None].tolist() == [0, 0, 1, 1, 0]
    assert labels["geometry", 1.0].tolist() == [1, 0, 1, 1, 0]
    assert labels["geometry", mask_labels.ALONE][:2].tolist() == [1, 0]
    # The prototypes are the mean places of masks 0, 1 and 4, and of masks 2 and 3.
    assert labels[prototype, None].tolist() == [1, 0, 1, 1, 0]
    names = [row["labels"] for row in mask_labels.label_rows(masks, labels)]
    spaces = ["geometry", "features", mask_labels.CONTROL]
    of_spaces = [space for space in spaces for _ in range(4)]
    assert names == ["vote", prototype, *of_spaces, "true majority"]
    classes = mask_labels.class_rows(masks, labels, ["road", "car", "sky"])
    assert [row["class_iou"] for row in classes] == ["vote", prototype, *spaces, "true majority"]
    best = classes[-1]
    assert best["sky"] == pytest.approx(100 * 40 / 45)


def test_masks_below_the_threshold_of_their_class_are_left_out(mask_labels):
    """Half of each class's area lies at or above its threshold, and no threshold is above .9."""
    probabilities = torch.tensor(
        [
            [0.95, 0.03, 0.02],
            [0.10, 0.62, 0.28],
            [0.10, 0.82, 0.08],
            [0.96, 0.02, 0.02],
            [0.55, 0.40, 0.05],
        ]
    )
    masks = labelled(mask_labels, probabilities.log(), [0, 0, 1, 1, 1])
    # Class 0 has 32 pixels at .95, none at .96 and 90 at .55; class 1 has 50 at .62 and 45 at .82.
    assert mask_labels.left_out(masks).tolist() == [False, False, False, False, False]
    fewer = dataclasses.replace(masks, truth=TRUTH * torch.tensor([1, 0.5, 1, 1, 0.3])[:, None])
    # Now 27 pixels at .55, and 25 at .62.
    assert mask_labels.left_out(fewer).tolist() == [False, True, False, False, True]
    rows = mask_labels.plausible_rows(fewer)
    assert [(row["of"], row["likeliest"]) for row in rows[3:]] == [
        ("left out", k) for k in (1, 2, 3)
    ]
    assert rows[3]["share of the area"] == pytest.approx(100 * 52 / 129)
    assert [row["area"] for row in rows[3:]] == pytest.approx([100, 100, 100])
    assert [row["masks"] for row in rows[:3]] == pytest.approx([75, 75, 100])
