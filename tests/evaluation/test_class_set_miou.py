"""mIoU-19, -16 and -13 from one matrix, against torchmetrics and against counting pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfss_ray.data.class_sets import CAMVID_11, CITYSCAPES_19, SYNTHIA_16, class_set_of
from sfss_ray.evaluation.class_set_miou import named_mious
from sfss_ray.evaluation.confusion_matrix import ConfusionMatrix

ABSENT = CITYSCAPES_19.classes.index("train")


@pytest.fixture(scope="module")
def images() -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels with 255 and without `train`, and predictions that are often right."""
    rng = np.random.default_rng(1)
    pairs = []
    for _ in range(3):
        labels = rng.integers(0, 19, (20, 30))
        labels[labels == ABSENT] = 255
        guesses = np.where(
            rng.random(labels.shape) < 0.6, labels, rng.integers(0, 19, labels.shape)
        )
        guesses[guesses == 255] = 0
        pairs.append((labels.astype(np.uint8), guesses.astype(np.uint8)))
    return pairs


@pytest.fixture(scope="module")
def matrix(images) -> ConfusionMatrix:
    counted = ConfusionMatrix(19)
    for labels, guesses in images:
        counted.add(labels, guesses)
    return counted


def slow_iou(images, index: int) -> float:
    """Pixel by pixel."""
    both = either = 0
    for labels, guesses in images:
        for label, guess in zip(labels.ravel().tolist(), guesses.ravel().tolist(), strict=True):
            if label != 255:
                both += label == index and guess == index
                either += label == index or guess == index
    return 100 * both / either


def test_named_mious_match_pixel_counting(images, matrix):
    named = {n.name: n for n in named_mious(matrix, CITYSCAPES_19, CITYSCAPES_19)}
    assert list(named) == ["mIoU-19", "mIoU-16", "mIoU-13"]
    iou = {c: slow_iou(images, i) for i, c in enumerate(CITYSCAPES_19.classes) if i != ABSENT}
    without16 = {"terrain", "truck", "train"}
    without13 = without16 | {"wall", "fence", "pole"}
    for name, omitted in (("mIoU-19", set()), ("mIoU-16", without16), ("mIoU-13", without13)):
        values = [value for c, value in iou.items() if c not in omitted]
        assert named[name].miou == pytest.approx(np.mean(values))
    assert named["mIoU-19"].absent == ("train",)
    assert named["mIoU-16"].absent == ()
    assert "mean of 18 classes; absent from the labels: train" in named["mIoU-19"].line()
    assert named["mIoU-13"].line().startswith("mIoU-13 (synthia-13): ")


def test_named_mious_are_also_counted_like_the_official_scorer(images, matrix):
    """`train` is absent and predicted, so it counts as 0; the sets of 16 and 13 lack it."""
    assert any((guesses[labels != 255] == ABSENT).any() for labels, guesses in images)
    named = {n.name: n for n in named_mious(matrix, CITYSCAPES_19, CITYSCAPES_19)}
    ious = [slow_iou(images, i) for i in range(19) if i != ABSENT]
    assert named["mIoU-19"].miou == pytest.approx(sum(ious) / 18)
    assert named["mIoU-19"].official == pytest.approx(sum(ious) / 19)
    assert f"official (IoU 0 for those that are predicted): {sum(ious) / 19:.2f}" in (
        named["mIoU-19"].line()
    )
    for name in ("mIoU-16", "mIoU-13"):
        assert named[name].official == named[name].miou
        assert "official" not in named[name].line()


def test_iou_agrees_with_torchmetrics(images, matrix):
    metrics = pytest.importorskip("torchmetrics.classification")
    jaccard = metrics.MulticlassJaccardIndex(19, average="none", ignore_index=255)
    recall = metrics.MulticlassRecall(19, average="none", ignore_index=255)
    confusion = metrics.MulticlassConfusionMatrix(19, ignore_index=255)
    for labels, guesses in images:
        pair = torch.from_numpy(guesses.astype(np.int64)), torch.from_numpy(labels.astype(np.int64))
        for metric in (jaccard, recall, confusion):
            metric.update(*pair)
    assert np.array_equal(confusion.compute().numpy(), matrix.counts)
    present = np.arange(19) != ABSENT
    np.testing.assert_allclose(
        100 * jaccard.compute().numpy()[present], matrix.iou()[present], 1e-5
    )
    np.testing.assert_allclose(
        100 * recall.compute().numpy()[present], matrix.recall()[present], 1e-5
    )
    assert np.isnan(matrix.iou()[ABSENT])
    assert np.isnan(matrix.recall()[ABSENT])
    assert matrix.label_share().sum() == pytest.approx(100)


def test_only_class_sets_in_both_model_and_labels_are_named(matrix):
    on_synthia = named_mious(matrix, CITYSCAPES_19, SYNTHIA_16)
    assert [n.name for n in on_synthia] == ["mIoU-16", "mIoU-13"]
    small = ConfusionMatrix(11)
    small.add(np.uint8([[0, 1]]), np.uint8([[0, 0]]))
    assert [n.name for n in named_mious(small, CAMVID_11, CAMVID_11)] == ["mIoU-11"]
    assert named_mious(ConfusionMatrix(2), class_set_of(["a", "b"]), CITYSCAPES_19) == []
