"""Verdicts on students whose scores are known, and the part of a change that is chance."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sfss_ray.evaluation.examination import Score
from sfss_ray.evaluation.verdict import (
    LABEL_FREE_SCORE,
    MIN_IMAGES,
    chance,
    class_losses,
    judge,
    label_free_score,
    student_t,
)
from sfss_ray.report.report_record import IMPROVED, NO_EVIDENCE, WORSE, ClassLoss

CLASSES = ("road", "fence", "pole")
SPREAD = (-0.02, 0.01, 0.0, 0.01)
"""Leave-one-out changes around their mean."""


def label_free(value: float, spread=(0.0,) * 4, **parts) -> Score:
    """A score on four held-out images."""
    parts = {"predicted_classes": 3, "class_entropy": 1.0, "held_out_images": 4} | parts
    without = tuple(value + offset for offset in spread)
    return Score(**{LABEL_FREE_SCORE: value}, leave_one_out={LABEL_FREE_SCORE: without}, **parts)


def labelled(miou: float, spread=(0.0,) * 4, **parts) -> Score:
    """A score on four labelled images."""
    without = tuple(miou + offset for offset in spread)
    return Score(miou=miou, labelled_images=4, leave_one_out={"miou": without}, **parts)


def test_chance_is_the_standard_error_of_a_mean_over_images():
    """A mean has a textbook error: the standard deviation of the paired changes over sqrt(N)."""
    rng = np.random.default_rng(0)
    source, student = rng.normal(40, 9, 12), rng.normal(42, 9, 12)
    without = [[np.delete(images, i).mean() for i in range(12)] for images in (source, student)]
    error = np.std(student - source, ddof=1) / math.sqrt(12)
    assert chance(*without) == pytest.approx(2.201 * error, rel=2e-3)  # t table, 11 degrees


def test_chance_covers_the_true_change_of_a_ratio_in_19_of_20_samples():
    """A ratio of sums over images, as an IoU is: the error holds for scores that are no means."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        union = rng.gamma(3.0, 1.0, 15)
        hit = union * rng.beta(6, 4, 15)
        hit_after = np.minimum(union, hit * rng.normal(1.1, 0.1, 15))
        whole = hit_after.sum() / union.sum() - hit.sum() / union.sum()
        without = [(x.sum() - x) / (union.sum() - union) for x in (hit, hit_after)]
        inside += abs(whole - 0.0587) <= chance(*without)  # of a sample of 4 million images
    assert 0.92 <= inside / 400 <= 0.98


def test_what_images_add_to_both_networks_is_no_chance():
    source = [0.1, 0.9, 0.4, 0.6]
    assert chance(source, [value + 0.05 for value in source]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("count", range(MIN_IMAGES))
def test_too_few_images_leave_everything_to_chance(count):
    assert chance([0.5] * count, [0.9] * count) == math.inf
    assert math.isfinite(chance([0.5] * MIN_IMAGES, [0.9] * MIN_IMAGES))


def test_images_without_a_score_are_left_out():
    nan = math.nan
    assert chance([1.0, nan, 2.0, 3.0], [1.0, 5.0, 2.5, 3.0]) == chance([1, 2, 3], [1, 2.5, 3])


@pytest.mark.parametrize(
    ("freedom", "table"), [(2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042)]
)
def test_student_t_is_near_the_published_table(freedom, table):
    assert student_t(freedom) == pytest.approx(table, rel=0.032)


@pytest.mark.parametrize(
    ("change", "spread", "word"),
    [
        (0.3, SPREAD, IMPROVED),
        (-0.3, SPREAD, WORSE),
        (0.05, SPREAD, NO_EVIDENCE),
        (-0.05, SPREAD, NO_EVIDENCE),
        (0.0, (0.0,) * 4, NO_EVIDENCE),
    ],
)
def test_only_a_change_beyond_chance_is_evidence(change, spread, word):
    """chance(SPREAD) = 3.182 * sqrt(3 / 4 * 6e-4) = 0.0675."""
    verdict = judge(label_free(1.0), label_free(1.0 + change, spread), CLASSES)
    assert (verdict.word, verdict.score_name) == (word, LABEL_FREE_SCORE)
    assert not verdict.used_labels
    assert verdict.is_worse == (word == WORSE)


def test_the_reason_is_one_sentence_with_the_figures():
    verdict = judge(label_free(1.0), label_free(1.3, SPREAD), CLASSES)
    assert verdict.line() == (
        "verdict: improved. Without labels, anchored_information on 4 images rises from 1.000 to"
        " 1.300 (+0.300, chance explains up to 0.067)."
    )


def test_labels_decide_where_they_are_given():
    """The label-free score says the opposite, and even sees a collapse."""
    source = replace(labelled(50.3), **{LABEL_FREE_SCORE: 1.0}, predicted_classes=10)
    student = replace(labelled(47.6), **{LABEL_FREE_SCORE: 1.2}, predicted_classes=2)
    verdict = judge(source, replace(student, held_out_images=4), CLASSES)
    assert (verdict.word, verdict.score_name, verdict.used_labels) == (WORSE, "mIoU", True)
    assert verdict.reason == (
        "With labels, mIoU on 4 images falls from 50.3 to 47.6 (-2.7, chance explains up to 0.0)."
    )


def test_a_collapsed_student_is_worse_whatever_its_score():
    student = label_free(9.0, predicted_classes=1, class_entropy=0.1)
    verdict = judge(label_free(1.0, predicted_classes=14, class_entropy=2.0), student, CLASSES)
    assert verdict.word == WORSE
    assert verdict.reason == (
        "The student collapsed: it predicts 1 classes, the source model 14 (entropy of the class"
        " histogram 0.10 against 2.00)."
    )


def test_without_images_there_is_no_evidence():
    verdict = judge(Score(), Score(), CLASSES)
    assert (verdict.word, verdict.score_name, verdict.losses) == (NO_EVIDENCE, "", ())
    assert verdict.reason == "There are no labels and no held-out images with masks."


def test_two_images_are_too_few():
    source, student = (
        Score(miou=miou, labelled_images=2, leave_one_out={"miou": (miou, miou)})
        for miou in (40.0, 60.0)
    )
    verdict = judge(source, student, CLASSES)
    assert verdict.word == NO_EVIDENCE
    assert "(+20.0, 3 images are needed to tell it from chance)" in verdict.reason


def test_a_class_that_loses_half_of_its_iou_is_named():
    source = labelled(40.0, per_class=(90.0, 26.5, 4.9))
    student = labelled(44.1, per_class=(95.0, 1.9, 0.0))  # the pole was below MIN_IOU before
    verdict = judge(source, student, CLASSES)
    assert verdict.losses == (ClassLoss("fence", 26.5, 1.9),)
    assert verdict.reason.endswith(
        ", but a class loses more than half of its IoU: fence (26.5 to 1.9 %)."
    )


def test_classes_that_lose_half_of_their_pixels_are_named_without_labels():
    source = label_free(1.0, class_share=(0.9, 0.02, 0.08))
    student = label_free(0.5, class_share=(0.985, 0.009, 0.006))
    verdict = judge(source, student, CLASSES)
    assert [loss.name for loss in verdict.losses] == ["pole", "fence"]
    assert verdict.reason.endswith(
        ", and 2 classes lose more than half of their predicted pixels: pole (8.00 to 0.60 %), fence"
        " (2.00 to 0.90 %)."
    )


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [(10.0, 4.9, True), (10.0, 5.0, False), (4.9, 0.0, False), (math.nan, math.nan, False)],
)
def test_half_is_enough_and_small_classes_do_not_count(before, after, named):
    source, student = labelled(1.0, per_class=(before,)), labelled(1.0, per_class=(after,))
    assert bool(class_losses(source, student, ("road",), uses_labels=True)) == named


def test_the_label_free_score_is_an_attribute_of_scores():
    assert label_free_score(label_free(0.7)) == 0.7
    assert math.isnan(label_free_score(Score()))
