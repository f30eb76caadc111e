"""mIoU from a confusion matrix, against counting pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sfss_ray.data.class_sets import IGNORE_INDEX
from sfss_ray.evaluation.confusion_matrix import ConfusionMatrix

CLASSES = 4
LABELS = arrays(np.uint8, (5, 6), elements=st.sampled_from([*range(CLASSES), IGNORE_INDEX]))
PREDICTIONS = arrays(np.uint8, (5, 6), elements=st.integers(0, CLASSES - 1))


def counted(labels, predictions, num_classes: int = CLASSES) -> ConfusionMatrix:
    matrix = ConfusionMatrix(num_classes)
    matrix.add(np.asarray(labels, np.uint8), np.asarray(predictions, np.uint8))
    return matrix


def slow_iou(labels, predictions, index: int) -> float:
    """IoU of one class in percent, by its definition."""
    valid = labels != IGNORE_INDEX
    labelled, predicted = (labels == index) & valid, (predictions == index) & valid
    if not labelled.any():
        return float("nan")
    return 100 * (labelled & predicted).sum() / (labelled | predicted).sum()


@given(LABELS, PREDICTIONS)
def test_iou_matches_its_definition(labels, predictions):
    expected = [slow_iou(labels, predictions, c) for c in range(CLASSES)]
    matrix = counted(labels, predictions)
    np.testing.assert_allclose(matrix.iou(), expected)
    finite = [value for value in expected if value == value]
    mean = np.mean(finite) if finite else np.nan
    assert matrix.miou() == pytest.approx(mean, nan_ok=True)


def official_scores(labels, predictions, index: int) -> float:
    """getIouScoreForLabel of cityscapesScripts, pixel by pixel: NaN only when tp + fp + fn is 0."""
    tp = fp = fn = 0
    for label, prediction in zip(
        labels.ravel().tolist(), predictions.ravel().tolist(), strict=True
    ):
        if label == IGNORE_INDEX:
            continue
        tp += label == index and prediction == index
        fp += label != index and prediction == index
        fn += label == index and prediction != index
    return 100 * tp / (tp + fp + fn) if tp + fp + fn else float("nan")


@given(LABELS, PREDICTIONS)
def test_official_iou_matches_cityscapesscripts(labels, predictions):
    expected = [official_scores(labels, predictions, c) for c in range(CLASSES)]
    matrix = counted(labels, predictions)
    np.testing.assert_allclose(matrix.official_iou(), expected)
    valid = [value for value in expected if value == value]
    mean = sum(valid) / len(valid) if valid else np.nan
    assert matrix.official_miou() == pytest.approx(mean, nan_ok=True)


def test_the_official_mean_counts_a_class_that_is_only_predicted_as_0():
    matrix = counted([[0, 0, 0, 0, 255]], [[0, 0, 0, 3, 2]])
    np.testing.assert_allclose(matrix.official_iou(), [75, np.nan, np.nan, 0])
    assert (matrix.miou(), matrix.official_miou()) == (75, 37.5)
    assert matrix.official_miou(np.array([True, True, True, False])) == 75


@given(LABELS, PREDICTIONS)
def test_counts_are_label_by_prediction(labels, predictions):
    counts = counted(labels, predictions).counts
    for label in range(CLASSES):
        for prediction in range(CLASSES):
            both = (labels == label) & (predictions == prediction)
            assert counts[label, prediction] == both.sum()


@given(LABELS, PREDICTIONS, LABELS, PREDICTIONS)
def test_images_add_up_to_one_matrix(labels, predictions, more_labels, more_predictions):
    matrix = counted(labels, predictions)
    matrix.add(more_labels, more_predictions)
    together = counted(
        np.concatenate([labels, more_labels]), np.concatenate([predictions, more_predictions])
    )
    assert np.array_equal(matrix.counts, together.counts)


def test_ignored_pixels_do_not_count():
    matrix = counted([[0, 1, 255, 255]], [[0, 1, 0, 1]])
    assert matrix.miou() == 100
    assert matrix.counts.sum() == 2


def test_absent_classes_are_nan_and_left_out_of_the_mean():
    matrix = counted([[0, 0, 1, 1]], [[0, 0, 1, 0]])
    np.testing.assert_allclose(matrix.iou(), [100 * 2 / 3, 50, np.nan, np.nan])
    assert matrix.miou() == pytest.approx((100 * 2 / 3 + 50) / 2)


def test_a_class_that_is_only_predicted_lowers_the_others():
    matrix = counted([[0, 0, 0, 0]], [[0, 0, 0, 3]])
    np.testing.assert_allclose(matrix.iou(), [75, np.nan, np.nan, np.nan])
    assert matrix.miou() == 75


def test_pixel_accuracy_weighs_pixels():
    assert counted([[0, 0, 0, 1, 255]], [[0, 0, 0, 0, 1]]).pixel_accuracy() == 75


def test_scores_without_labels_are_nan():
    for matrix in (ConfusionMatrix(3), counted([[255]], [[0]])):
        assert np.isnan(matrix.iou()).all()
        assert np.isnan(matrix.miou())
        assert np.isnan(matrix.pixel_accuracy())


@given(st.lists(st.tuples(LABELS, PREDICTIONS), min_size=1, max_size=4))
def test_the_miou_without_an_image_is_that_of_the_others(images):
    whole = ConfusionMatrix(CLASSES)
    for labels, predictions in images:
        whole.add(labels, predictions)
    expected = []
    for index in range(len(images)):
        others = ConfusionMatrix(CLASSES)
        for labels, predictions in images[:index] + images[index + 1 :]:
            others.add(labels, predictions)
        expected.append(others.miou())
    np.testing.assert_allclose(whole.leave_one_out_miou(), expected)


def test_no_images_have_no_miou_without_one():
    assert ConfusionMatrix(3).leave_one_out_miou().shape == (0,)
