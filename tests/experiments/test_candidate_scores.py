"""Candidates for label-free scores: hand-computed values on small predictions."""

from __future__ import annotations

import math

import numpy as np
import pytest


@pytest.fixture
def scores(experiment):
    return experiment("candidate_scores")


def predictions(experiment, ids, views=None, confidence=None, disturbed=None):
    """Return predictions of one image (H, W); probabilities of .8 at a quarter of its size."""
    module = experiment("trial_predictions")
    ids = np.asarray(ids, np.uint8)[None]
    classes = 3
    coarse = np.full((1, classes, *ids.shape[1:]), 0.1, np.float16)
    np.put_along_axis(coarse, ids[:, None].astype(int), np.float16(0.8), axis=1)
    same = np.stack([ids])
    return module.Predictions(
        ids=ids,
        confidence=np.full(ids.shape, 204, np.uint8) if confidence is None else confidence,
        views=same if views is None else np.asarray(views, np.uint8),
        disturbed=same if disturbed is None else np.asarray(disturbed, np.uint8),
        coarse=coarse,
    )


def test_agreement_is_the_mean_iou_over_the_classes_of_either(scores, experiment):
    source = predictions(experiment, [[0, 0, 1, 1]])
    student = predictions(experiment, [[0, 0, 1, 2]])
    # Class 0: 2 of 2, class 1: 1 of 2, class 2: 0 of 1.
    assert scores.source_agreement(student, source) == pytest.approx((1 + 0.5 + 0) / 3)
    assert scores.source_agreement(source, source) == 1


def test_views_and_disturbances_are_compared_with_the_plain_prediction(scores, experiment):
    views = [[[[0, 0, 1, 1]]], [[[0, 1, 1, 1]]]]
    student = predictions(experiment, [[0, 0, 1, 1]], views=views, disturbed=views[1:])
    second = (1 / 2 + 2 / 3) / 2
    assert scores.view_consistency(student) == pytest.approx((1 + second) / 2)
    assert scores.steadiness(student) == pytest.approx(second)
    other = predictions(experiment, [[0, 1, 1, 1]])
    assert scores.views_of_both(other, student) == pytest.approx((second + 1) / 2)


def test_trusted_pixels_are_the_surest_half_of_each_class(scores, experiment):
    confidence = np.array([[[10, 20, 30, 40, 90, 100]]], np.uint8)
    source = predictions(experiment, [[0, 0, 0, 0, 1, 1]], confidence=confidence)
    trusted = scores.trusted_pixels(source)
    assert trusted.tolist() == [[[False, False, True, True, False, True]]]
    student = predictions(experiment, [[1, 1, 0, 1, 0, 1]])
    assert scores.kept_anchors(student, source) == pytest.approx((1 / 2 + 1) / 2)


def test_information_maximum_of_equal_classes(scores, experiment):
    student = predictions(experiment, [[0, 1, 2]])
    of_pixel = -(0.8 * math.log(0.8) + 0.2 * math.log(0.1))
    assert scores.information_maximum(student) == pytest.approx(math.log(3) - of_pixel, abs=1e-3)
    constant = predictions(experiment, [[1, 1, 1]])
    assert scores.information_maximum(constant) == pytest.approx(0, abs=1e-6)


def test_the_committee_follows_its_majority(scores, experiment):
    members = [predictions(experiment, ids) for ids in ([[0, 0, 1]], [[0, 0, 1]], [[0, 2, 2]])]
    committee = scores.Committee.of(members)
    assert committee.ids.tolist() == [[[0, 0, 1]]]
    assert committee.agreement(members[0]) == 1
    assert committee.agreement(members[2]) == pytest.approx((1 / 2 + 0 + 0) / 3)


def test_predictions_survive_a_file(experiment, tmp_path):
    student = predictions(experiment, [[0, 1, 2]])
    student.save(tmp_path / "p.npz")
    loaded = experiment("trial_predictions").Predictions.load(tmp_path / "p.npz")
    for name, values in vars(student).items():
        assert np.array_equal(getattr(loaded, name), values)


def test_recorded_predictions_are_on_the_pixels_of_the_image(experiment, tmp_path):
    import cv2

    from sfss_ray.config import EvaluationConfig
    from sfss_ray.data.folders import list_images
    from sfss_ray.evaluation.inference import predict_probabilities
    from sfss_ray.models.architectures.catalogue import build_network

    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), rng.integers(0, 255, (48, 64, 3), np.uint8))
    network, files = build_network("compact", 4).eval(), list_images(tmp_path)
    module = experiment("trial_predictions")
    recorded = module.record_predictions(network, files, EvaluationConfig())
    assert recorded.ids.shape == (2, 48, 64)
    assert recorded.views.shape == recorded.disturbed.shape == (3, 2, 48, 64)
    assert recorded.coarse.shape == (2, 4, 12, 16)
    probabilities = predict_probabilities(network, files[1].read(), EvaluationConfig())
    assert np.array_equal(recorded.ids[1], probabilities.argmax(0))
    mean = probabilities.reshape(4, 12, 4, 16, 4).mean((2, 4))
    assert np.allclose(recorded.coarse[1], mean, atol=1e-3)
    noisy, blurred, dark = module.disturb(files[0].read(), 0)
    assert np.abs(noisy.astype(int) - files[0].read()).mean() > 3
    assert blurred.std() < files[0].read().std()
    assert dark.max() <= 192
