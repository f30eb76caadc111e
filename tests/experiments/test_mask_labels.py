"""Scores of labels that whole masks get, against their definitions."""

from __future__ import annotations

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
    assert scores["accuracy"] == pytest.approx(50)  # masks 0 and 1 of 0, 1, 2 and 4
    assert scores["class_accuracy"] == pytest.approx(100 * (1 / 2 + 1 + 0) / 3)
    by_size = mask_labels.by_size(masks, labels)
    assert by_size == {
        "accuracy up to 64 px": pytest.approx(100 * 2 / 3),
        "accuracy up to 256 px": 0,
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
    sure = 4.0
    evidence = torch.tensor(
        [[0.2, 0.0, -1.0], [sure, 0.0, 0.0], [0.0, sure, 0.0], [0.0, sure, 0.0], [sure, 0.0, 0.0]]
    )
    place = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.92, 0.12], [0.88, 0.11], [0.12, 0.88]])
    masks = labelled(mask_labels, evidence, [0, 0, 1, 1, 1], {"geometry": (place,)})
    labels = mask_labels.all_labels(masks)
    assert labels["vote", None].tolist() == [0, 0, 1, 1, 0]
    assert labels["geometry", 1.0].tolist() == [1, 0, 1, 1, 0]
    names = [row["labels"] for row in mask_labels.label_rows(masks)]
    assert names == ["vote", *3 * ["geometry"], *3 * [mask_labels.CONTROL], "true majority"]
    classes = mask_labels.class_rows(masks, ["road", "car", "sky"])
    assert [row["class_iou"] for row in classes] == [
        "vote",
        "geometry",
        mask_labels.CONTROL,
        "true majority",
    ]
    best = classes[-1]
    assert best["sky"] == pytest.approx(100 * 40 / 45)
