"""Label-free scores, on cases that can be worked out by hand."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sfss_ray.evaluation.scores import MaskInformation, entropy, predicted_classes

PREDICTIONS = arrays(np.uint8, (4, 6), elements=st.integers(0, 2))
MASK_IDS = arrays(np.int32, (4, 6), elements=st.integers(0, 4))


def information(*images, num_classes: int = 3) -> float:
    score = MaskInformation(num_classes)
    for predictions, mask_ids in images:
        score.add(np.asarray(predictions, np.uint8), np.asarray(mask_ids, np.int32))
    return score.value()


def slow_information(predictions, mask_ids) -> float:
    """sum over (mask, class) of p(m, c) log(p(m, c) / (p(m) p(c))), inside masks."""
    inside = mask_ids > 0
    masks, classes = mask_ids[inside], predictions[inside]
    value = 0.0
    for mask in np.unique(masks):
        for c in np.unique(classes):
            joint = np.mean((masks == mask) & (classes == c))
            if joint:
                value += joint * log(joint / (np.mean(masks == mask) * np.mean(classes == c)))
    return value


@given(PREDICTIONS, MASK_IDS)
def test_it_is_the_mutual_information(predictions, mask_ids):
    expected = slow_information(predictions, mask_ids)
    assert information((predictions, mask_ids)) == pytest.approx(expected, abs=1e-9)


@given(PREDICTIONS, MASK_IDS, st.permutations(range(1, 5)))
def test_names_of_masks_do_not_matter(predictions, mask_ids, names):
    renamed = np.array([0, *names], np.int32)[mask_ids] * 1000
    plain = information((predictions, mask_ids))
    assert information((predictions, renamed)) == pytest.approx(plain, abs=1e-12)


def test_one_class_everywhere_scores_nothing():
    assert information(([[1, 1, 1, 1]], [[1, 1, 2, 3]])) == 0


def test_masks_that_are_the_classes_score_the_entropy_of_the_classes():
    predictions = [[0, 0, 1, 2]]
    expected = -(0.5 * log(0.5) + 2 * 0.25 * log(0.25))
    assert information((predictions, [[7, 7, 3, 9]])) == pytest.approx(expected)


def test_one_mask_over_everything_tells_nothing():
    assert information(([[0, 1, 2, 0]], [[4, 4, 4, 4]])) == pytest.approx(0, abs=1e-12)


def test_a_mixed_mask_costs_its_share():
    predictions, mask_ids = [[0, 0, 0, 1]], [[1, 1, 2, 2]]
    whole = -(0.75 * log(0.75) + 0.25 * log(0.25))
    assert information((predictions, mask_ids)) == pytest.approx(whole - 0.5 * log(2))


def test_pixels_outside_masks_do_not_count():
    inside = ([[0, 1]], [[1, 2]])
    wider = ([[0, 1, 2, 2]], [[1, 2, 0, 0]])
    assert information(wider) == pytest.approx(information(inside))


def test_masks_of_two_images_are_different_masks():
    """Id 1 means another region in the next image."""
    assert information(([[0, 0]], [[1, 1]]), ([[1, 1]], [[1, 1]])) == pytest.approx(log(2))


def test_nothing_counted_scores_nothing():
    assert information() == 0
    assert information(([[0, 1]], [[0, 0]])) == 0


def test_entropy_of_rows():
    counts = np.array([[1, 1, 0], [5, 0, 0], [0, 0, 0], [2, 2, 2]])
    np.testing.assert_allclose(entropy(counts), [log(2), 0, 0, log(3)], atol=1e-12)


def test_predicted_classes_leave_out_specks():
    assert predicted_classes(np.array([5000, 4998, 2, 0])) == 2
    assert predicted_classes(np.array([1, 1, 1])) == 3
    assert predicted_classes(np.zeros(3)) == 0
