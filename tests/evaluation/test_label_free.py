"""Label-free scores, on cases that can be worked out by hand."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sfss_ray.evaluation.label_free import (
    Agreement,
    AnchoredInformation,
    LabelFreeScores,
    MaskInformation,
    NeighbourhoodDensity,
    Variety,
    balancing_weights,
    entropy,
    lost_variety,
    predicted_classes,
    worth,
)
from sfss_ray.evaluation.source_reference import SourceReference

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
def test_the_score_is_the_mutual_information(predictions, mask_ids):
    expected = slow_information(predictions, mask_ids)
    assert information((predictions, mask_ids)) == pytest.approx(expected, abs=1e-9)


@given(PREDICTIONS, MASK_IDS, st.permutations(range(1, 5)))
def test_mask_ids_do_not_matter(predictions, mask_ids, names):
    renamed = np.array([0, *names], np.int32)[mask_ids] * 1000
    plain = information((predictions, mask_ids))
    assert information((predictions, renamed)) == pytest.approx(plain, abs=1e-12)


@given(PREDICTIONS, MASK_IDS, st.tuples(*[st.floats(0.1, 10)] * 3))
def test_a_weight_acts_like_repeated_pixels(predictions, mask_ids, weights):
    """Against the sum over the joint distribution in which each pixel has its class's weight."""
    score = MaskInformation(3, np.array(weights))
    score.add(predictions, mask_ids)
    inside = mask_ids > 0
    masks, classes = mask_ids[inside], predictions[inside]
    share = np.array(weights)[classes]
    share = share / max(share.sum(), 1e-12)
    value = 0.0
    for mask in np.unique(masks):
        for c in np.unique(classes):
            joint = share[(masks == mask) & (classes == c)].sum()
            if joint:
                value += joint * log(
                    joint / (share[masks == mask].sum() * share[classes == c].sum())
                )
    assert score.value() == pytest.approx(value, abs=1e-9)


def test_balancing_weights_let_rare_classes_count():
    weights = balancing_weights(np.array([0.64, 0.16, 0.0, 0.2]), min_share=0.01)
    assert weights == pytest.approx([1.25, 2.5, 10, 1 / np.sqrt(0.2)])


def test_losing_a_rare_class_lowers_the_balanced_score_more():
    ids = np.repeat(np.arange(1, 11), 10)[None]
    complete = np.repeat([0] * 5 + [1] * 4 + [2], 10)[None]
    reduced = np.where(complete == 2, 1, complete)
    reference = SourceReference.of(3, [(complete, [complete])])
    assert reference is not None
    assert reference.class_share == pytest.approx((0.5, 0.4, 0.1))

    def losses(name):
        values = []
        for predictions in (complete, reduced):
            scores = LabelFreeScores(3, reference)
            scores.add(np.eye(3)[predictions].transpose(2, 0, 1), ids, views=[predictions])
            values.append(scores.values()[name])
        return 1 - values[1] / values[0]

    assert losses("balanced_mask_information") > 1.2 * losses("mask_information") > 0


def test_one_class_everywhere_scores_zero():
    assert information(([[1, 1, 1, 1]], [[1, 1, 2, 3]])) == 0


def test_masks_that_are_the_classes_score_the_entropy_of_the_classes():
    predictions = [[0, 0, 1, 2]]
    expected = -(0.5 * log(0.5) + 2 * 0.25 * log(0.25))
    assert information((predictions, [[7, 7, 3, 9]])) == pytest.approx(expected)


def test_one_mask_over_everything_scores_zero():
    assert information(([[0, 1, 2, 0]], [[4, 4, 4, 4]])) == pytest.approx(0, abs=1e-12)


def test_a_mixed_mask_lowers_the_score_by_its_share():
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


def test_no_pixels_score_zero():
    assert information() == 0
    assert information(([[0, 1]], [[0, 0]])) == 0


@given(st.lists(st.tuples(PREDICTIONS, MASK_IDS), max_size=4))
def test_the_score_without_an_image_is_that_of_the_others(images):
    weights = np.array([0.3, 1.7, 0.9])
    whole = MaskInformation(3, weights)
    for predictions, mask_ids in images:
        whole.add(predictions, mask_ids)
    expected = []
    for index in range(len(images)):
        others = MaskInformation(3, weights)
        for predictions, mask_ids in images[:index] + images[index + 1 :]:
            others.add(predictions, mask_ids)
        expected.append(others.value())
    np.testing.assert_allclose(whole.leave_one_out(), expected, atol=1e-9)


def test_entropy_of_rows():
    counts = np.array([[1, 1, 0], [5, 0, 0], [0, 0, 0], [2, 2, 2]])
    np.testing.assert_allclose(entropy(counts), [log(2), 0, 0, log(3)], atol=1e-12)


def test_predicted_classes_ignore_tiny_shares():
    assert predicted_classes(np.array([5000, 4998, 2, 0])) == 2
    assert predicted_classes(np.array([1, 1, 1])) == 3
    assert predicted_classes(np.zeros(3)) == 0


def probabilities(seed: int, classes: int = 3, size=(6, 8)) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 2, (classes, *size))
    return np.exp(logits) / np.exp(logits).sum(0)


def slow_density(image: np.ndarray, temperature: float) -> float:
    """The formula of the class's docstring, cell by cell, over all cells."""
    cells = [p / np.sqrt((p**2).sum()) for p in image.reshape(len(image), -1).T]
    total = 0.0
    for i, cell in enumerate(cells):
        similar = [np.exp(cell @ other / temperature) for j, other in enumerate(cells) if j != i]
        weights = np.array(similar) / sum(similar)
        total -= sum(w * log(w) for w in weights)
    return total / len(cells)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_neighbourhood_density_is_its_formula(temperature):
    score, images = NeighbourhoodDensity(100, temperature), [probabilities(0), probabilities(1)]
    for image in images:
        score.add(image)
    expected = np.mean([slow_density(image, temperature) for image in images])
    assert score.value() == pytest.approx(expected, abs=1e-6)


def test_neighbourhood_density_draws_the_same_cells_for_every_model():
    image = probabilities(2, size=(40, 40))
    first, second = NeighbourhoodDensity(64), NeighbourhoodDensity(64)
    for score in (first, second):
        score.add(image)
    assert first.value() == second.value()
    all_cells = NeighbourhoodDensity(1600)
    all_cells.add(image)
    assert first.value() < log(63) < all_cells.value() + log(63)


def test_one_class_everywhere_has_the_densest_neighbourhood():
    """The reason why the score needs a guard against collapse."""
    same = np.zeros((3, 6, 8))
    same[1] = 1
    collapsed, sound = NeighbourhoodDensity(), NeighbourhoodDensity()
    collapsed.add(same)
    sound.add(probabilities(3))
    assert collapsed.value() == pytest.approx(log(47))
    assert sound.value() < collapsed.value()


@pytest.mark.parametrize("size", [(1, 1), (1, 2)])
def test_a_single_cell_has_no_neighbourhood(size):
    score = NeighbourhoodDensity()
    score.add(probabilities(4, size=size))
    assert score.value() == pytest.approx(0, abs=1e-9)
    assert NeighbourhoodDensity().value() == 0


@given(PREDICTIONS, PREDICTIONS)
def test_agreement_is_the_mean_overlap_of_classes(first, second):
    score, overlaps = Agreement(3), []
    score.add(first, second)
    for c in range(3):
        either = np.sum((first == c) | (second == c))
        if either:
            overlaps.append(np.sum((first == c) & (second == c)) / either)
    assert score.value() == pytest.approx(np.mean(overlaps))


def test_agreement_counts_pixels_over_all_images():
    score = Agreement(2)
    score.add(np.array([[0, 0]]), np.array([[0, 1]]))
    score.add(np.array([[1, 1]]), np.array([[1, 1]]))
    assert score.value() == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert Agreement(2).value() == 0


@pytest.mark.parametrize(
    ("model", "source", "collapsed"),
    [
        (Variety(10, 2.0), Variety(10, 2.0), False),
        (Variety(7, 2.0), Variety(10, 2.0), False),
        (Variety(6, 2.0), Variety(10, 2.0), True),
        (Variety(10, 1.3), Variety(10, 2.0), True),
        (Variety(1, 0.0), Variety(2, 0.6), True),
        (Variety(12, 2.2), Variety(10, 2.0), False),
        (Variety(1, 0.0), Variety(1, 0.0), False),  # the source model itself predicts one class
    ],
)
def test_a_collapse_is_recognised_against_the_source_model(model, source, collapsed):
    assert lost_variety(model, source) is collapsed


def test_variety_of_a_histogram():
    variety = Variety.of(np.array([50.0, 50.0, 0.0]))
    assert variety.classes == 2
    assert variety.entropy == pytest.approx(log(2))


def test_all_scores_together_are_the_single_ones():
    image, teacher = probabilities(5), probabilities(6).argmax(0)
    ids = np.random.default_rng(7).integers(0, 4, (6, 8))
    scores = LabelFreeScores(3)
    assert scores.values() == {}
    scores.add(image, ids, teacher)
    values = scores.values()
    agreement, density = Agreement(3), NeighbourhoodDensity()
    agreement.add(image.argmax(0), teacher)
    density.add(image)
    assert values["mask_information"] == pytest.approx(information((image.argmax(0), ids)))
    assert values["agreement"] == agreement.value()
    assert values["neighbourhood_density"] == density.value()
    slow = [-sum(p * log(p) for p in image[:, y, x]) for y in range(6) for x in range(8)]
    assert values["entropy"] == pytest.approx(np.mean(slow))
    assert values["predicted_classes"] == 3


def test_scores_without_masks_or_teacher_are_left_out():
    scores = LabelFreeScores(3)
    scores.add(probabilities(8))
    assert not {"mask_information", "agreement"} & set(scores.values())


def test_an_image_without_a_mask_has_no_mask_scores():
    scores = LabelFreeScores(3)
    scores.add(probabilities(8), np.zeros((6, 8), int))
    assert "mask_information" not in scores.values()
    assert scores.leave_one_out() == {}
    scores.add(probabilities(9), np.ones((6, 8), int))
    assert scores.values()["mask_information"] == 0
    assert len(scores.leave_one_out()["mask_information"]) == 2


def test_lower_entropy_ranks_higher():
    assert worth("entropy", 0.2) > worth("entropy", 0.9)
    assert worth("agreement", 0.2) < worth("agreement", 0.9)


def anchored(images, reference: SourceReference) -> AnchoredInformation:
    """Count images of (predictions, views, mask ids)."""
    information = MaskInformation(len(reference.class_share))
    score = AnchoredInformation(information, reference)
    for predictions, views, mask_ids in images:
        information.add(predictions, mask_ids)
        score.add(predictions, views)
    return score


def three_images():
    rng = np.random.default_rng(0)
    for _ in range(3):
        ids = rng.integers(0, 3, (6, 8))
        yield ids, [np.where(rng.random((6, 8)) < 0.8, ids, 0)], rng.integers(1, 5, (6, 8))


def reference_of(images) -> SourceReference:
    reference = SourceReference.of(3, [(ids, views) for ids, views, _ in images])
    assert reference is not None
    return reference


def mean_iou(first, second, classes) -> float:
    """Count the mean IoU of two lists of class ids over some classes, 0 where none has a pixel."""
    ious = []
    for label in classes:
        pairs = [(a == label, b == label) for a, b in zip(first, second, strict=True)]
        union = sum(int((a | b).sum()) for a, b in pairs)
        ious.append(sum(int((a & b).sum()) for a, b in pairs) / union if union else 0.0)
    return float(np.mean(ious))


def test_anchored_information_is_the_product_of_its_parts():
    images = list(three_images())
    reference = reference_of(images)
    students = [(np.where(ids == 2, 1, ids), views, masks) for ids, views, masks in images]
    information = MaskInformation(3)
    for ids, _, masks in students:
        information.add(ids, masks)
    predictions, own_views = zip(*((ids, views[0]) for ids, views, _ in students), strict=True)
    consistency = mean_iou(predictions, own_views, range(3))
    agreement = mean_iou(predictions, [views[0] for _, views, _ in images], range(3))
    product = information.value() * consistency * agreement**0.25
    assert anchored(students, reference).value() == pytest.approx(product)


def test_a_source_model_agrees_with_its_views_as_far_as_it_is_consistent():
    images = list(three_images())
    information = MaskInformation(3)
    for ids, _, masks in images:
        information.add(ids, masks)
    predictions, views = zip(*((ids, views[0]) for ids, views, _ in images), strict=True)
    consistency = mean_iou(predictions, views, range(3))
    assert consistency < 1
    value = anchored(images, reference_of(images)).value()
    assert value == pytest.approx(information.value() * consistency**1.25)


def test_anchored_information_without_an_image():
    images = list(three_images())
    score = anchored(images, reference_of(images))
    for number, value in enumerate(score.leave_one_out()):
        others = images[:number] + images[number + 1 :]
        whole = reference_of(images)
        rest = SourceReference(whole.class_share, whole.views[:number] + whole.views[number + 1 :])
        assert value == pytest.approx(anchored(others, rest).value())


def test_one_class_everywhere_has_no_anchored_information():
    images = list(three_images())
    same = [(np.zeros_like(ids), [np.zeros_like(ids)], masks) for ids, _, masks in images]
    assert anchored(same, reference_of(images)).value() == 0
