"""Scores of a network whose predictions are known."""

from __future__ import annotations

import json
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sfss_ray.config import EvaluationConfig
from sfss_ray.data.class_sets import class_set_of
from sfss_ray.data.folders import ImageFile, LabelledImage
from sfss_ray.errors import DataError
from sfss_ray.evaluation.examination import (
    Examination,
    Score,
)
from sfss_ray.evaluation.inference import predict_probabilities
from sfss_ray.models.card import Card
from sfss_ray.models.segmenter import Segmenter

CLASSES = class_set_of(["red", "green", "blue"])


class _Colours(nn.Module):
    """Returns the image as features, and records the sizes of its inputs."""

    def __init__(self):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(50.0))
        self.sizes: list[tuple[int, int]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append((images.shape[2], images.shape[3]))
        return images * self.sharpness


@pytest.fixture
def network() -> Segmenter:
    """Predicts red, green or blue: the channel that is highest."""
    return Segmenter(_Colours(), nn.Identity(), Card((0, 0, 0), (1, 1, 1))).eval()


def picture(ids: np.ndarray) -> np.ndarray:
    return (np.eye(3)[ids] * 255).astype(np.uint8)


def quarters(height: int = 64, width: int = 96) -> np.ndarray:
    ids = np.zeros((height, width), np.uint8)
    ids[:, width // 2 :] = 1
    ids[height // 2 :, : width // 2] = 2
    return ids


def pair(folder: Path, name: str, ids: np.ndarray, labels: np.ndarray) -> LabelledImage:
    image, label = folder / f"{name}.png", folder / f"{name}_labels.png"
    Image.fromarray(picture(ids)).save(image)
    Image.fromarray(labels).save(label)
    return LabelledImage(name, image, label)


def test_labels_of_a_perfect_prediction_score_100(network, tmp_path: Path):
    ids = quarters()
    score = Examination(CLASSES, (pair(tmp_path, "a", ids, ids),)).score(network)
    assert (score.miou, score.pixel_accuracy) == (100, 100)
    assert score.per_class == (100, 100, 100)
    assert (score.labelled_images, score.held_out_images) == (1, 0)
    assert np.isnan(score.mask_information)
    assert network.body.sizes == [(64, 96)]


def test_one_matrix_counts_all_images(network, tmp_path: Path):
    """Not the mean of the images' mIoU: the second image has 4 times the pixels of the first."""
    red, small = np.zeros((64, 64), np.uint8), np.zeros((32, 32), np.uint8)
    wrong = pair(tmp_path, "a", small + 1, small)
    right = pair(tmp_path, "b", red, red)
    score = Examination(CLASSES, (wrong, right)).score(network)
    assert score.miou == pytest.approx(80)
    assert np.isnan(score.per_class[1])


def test_large_images_are_shrunk_for_the_network_but_not_their_labels(network, tmp_path: Path):
    ids = quarters(128, 256)
    config = EvaluationConfig(max_size=64)
    examination = Examination(CLASSES, (pair(tmp_path, "a", ids, ids),), config=config)
    score = examination.score(network)
    assert network.body.sizes == [(32, 64)]
    assert score.pixel_accuracy > 97  # blurred only at the borders of regions
    probabilities = predict_probabilities(network, picture(ids), config)
    assert probabilities.shape == (3, 128, 256)


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (1, 9000), (9000, 1)])
def test_images_of_any_size_are_predicted_at_their_own(network, size):
    probabilities = predict_probabilities(network, picture(quarters(*size)), EvaluationConfig())
    assert probabilities.shape == (3, *size)
    assert probabilities.dtype == np.float32
    assert min(network.body.sizes[0]) >= 32
    np.testing.assert_allclose(probabilities.sum(0), 1, rtol=1e-5)


def test_labels_of_another_size_are_refused_with_both(network, tmp_path: Path):
    item = pair(tmp_path, "a", quarters(64, 96), quarters(64, 64))
    with pytest.raises(DataError, match=r"a_labels\.png' are 64x64, their image is 96x64"):
        Examination(CLASSES, (item,)).score(network)


def held_out(folder: Path, *maps: np.ndarray) -> tuple[ImageFile, ...]:
    for index, ids in enumerate(maps):
        Image.fromarray(picture(ids)).save(folder / f"{index}.png")
    return tuple(ImageFile(str(i), folder / f"{i}.png") for i in range(len(maps)))


def test_held_out_images_are_scored_without_labels(network, tmp_path: Path):
    ids = quarters()
    files = held_out(tmp_path, ids)
    requested_ids: list[str] = []

    def id_map(image_id: str) -> np.ndarray:
        requested_ids.append(image_id)
        return ids.astype(np.int32) + 1

    score = Examination(CLASSES, held_out=files, id_map=id_map).score(network)
    assert score.mask_information == pytest.approx(-(0.5 * log(0.5) + 0.5 * log(0.25)))
    assert score.entropy == pytest.approx(0, abs=1e-6)
    assert (score.predicted_classes, score.held_out_images) == (3, 1)
    assert requested_ids == ["0"]
    assert np.isnan(score.miou)
    assert score.per_class == ()


def test_an_uncertain_network_has_the_entropy_of_all_classes(network, tmp_path: Path):
    files = held_out(tmp_path, quarters())
    network.body.sharpness.data.zero_()
    score = Examination(CLASSES, held_out=files).score(network)
    assert score.entropy == pytest.approx(log(3), rel=1e-4)
    assert score.predicted_classes == 1
    assert np.isnan(score.mask_information)  # no masks were given


def test_a_call_returns_the_scores_that_could_be_computed(network, tmp_path: Path):
    ids = quarters()
    item = pair(tmp_path, "a", ids, ids)
    labelled = Examination(CLASSES, (item,))(network)
    assert labelled["val_miou"] == 100
    assert not {"mask_information", "entropy"} & set(labelled)
    label_free = Examination(CLASSES, held_out=held_out(tmp_path, ids))(network)
    unlabelled = {"entropy", "predicted_classes", "class_entropy", "neighbourhood_density"}
    assert set(label_free) == unlabelled  # no masks, no teacher
    assert label_free["predicted_classes"] == 3
    assert label_free["class_entropy"] == pytest.approx(-(0.5 * log(0.5) + 0.5 * log(0.25)))


def test_student_and_teacher_are_compared_on_held_out_images(network, tmp_path: Path):
    ids = quarters()
    teacher = Segmenter(_Colours(), nn.Identity(), Card((0, 0, 0), (1, 1, 1))).eval()
    examination = Examination(CLASSES, held_out=held_out(tmp_path, ids))
    assert examination(network, teacher)["agreement"] == 1
    teacher.body.sharpness.data.neg_()  # predicts the lowest channel, never the highest
    assert examination(network, teacher)["agreement"] == 0


def test_scores_become_json_without_nan(network, tmp_path: Path):
    red = np.zeros((32, 32), np.uint8)
    some = Examination(CLASSES, (pair(tmp_path, "a", red, red),)).score(network)
    ignored = Examination(CLASSES, (pair(tmp_path, "b", red, red + 255),)).score(network)
    for score in (Score(), some, ignored):
        text = json.dumps(score.as_dict(), allow_nan=False)
        assert set(json.loads(text)) == set(vars(score)) - {"leave_one_out"}
    assert some.as_dict()["per_class"] == [100, None, None]
    assert ignored.as_dict()["miou"] is None
    assert Score().as_dict()["per_class"] is None


def test_scores_that_need_the_source_model(network, tmp_path: Path):
    ids = quarters()
    files = held_out(tmp_path, ids)
    examination = Examination(CLASSES, held_out=files, id_map=lambda _: ids.astype(np.int32) + 1)
    alone = examination.score(network)
    assert np.isnan(alone.balanced_mask_information)
    assert np.isnan(alone.anchored_information)
    assert alone.class_share == (0.25, 0.5, 0.25)
    complete = examination.with_source(network).score(network)
    weights = np.array([0.25, 0.5, 0.25]) / np.sqrt([0.25, 0.5, 0.25])
    shares = weights / weights.sum()
    # Masks are the classes, so that the score is the entropy of the weighted classes.
    assert complete.balanced_mask_information == pytest.approx(-(shares * np.log(shares)).sum())
    # The network keeps its own anchors, and its views differ at borders alone.
    information = complete.mask_information
    assert information == pytest.approx(0.25 * log(4) + 0.5 * log(2) + 0.25 * log(4))
    assert 0.9 * information < complete.anchored_information <= information


def test_without_masks_the_source_model_changes_nothing(network, tmp_path: Path):
    examination = Examination(CLASSES, held_out=held_out(tmp_path, quarters()))
    plain, with_source = examination.score(network), examination.with_source(network).score(network)
    assert plain.as_dict() == with_source.as_dict()


def test_scores_without_each_image_are_counted(network, tmp_path: Path):
    ids, red = quarters(), np.zeros((64, 96), np.uint8)
    right, wrong = pair(tmp_path, "r", ids, ids), pair(tmp_path, "w", red, ids)
    files = held_out(tmp_path, ids)
    examination = Examination(
        CLASSES, (right, wrong), files, id_map=lambda _: ids.astype(np.int32) + 1
    )
    score = examination.score(network)
    without = {
        name: Examination(CLASSES, (item,)).score(network).miou
        for name, item in (("right", wrong), ("wrong", right))
    }
    assert score.leave_one_out["miou"] == (without["right"], without["wrong"])
    assert score.leave_one_out["mask_information"] == (0.0,) * len(files)
    complete = examination.with_source(network).score(network)
    assert set(complete.leave_one_out) == {
        "miou",
        "mask_information",
        "balanced_mask_information",
        "anchored_information",
    }
    assert Examination(CLASSES).score(network).leave_one_out == {}
