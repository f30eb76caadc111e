"""Scores of a student that need those of its source model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sfss_ray.data.class_sets import class_set_of
from sfss_ray.data.folders import ImageFile
from sfss_ray.evaluation.examination import Examination
from sfss_ray.models.card import Card
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.train.student_watch import (
    IS_COLLAPSED,
    KEEP_SCORE,
    REFERENCE_FILE,
    SOURCE_SCORES_FILE,
    StudentWatch,
)

CLASSES = class_set_of(["red", "green", "blue"])


def network_of_colours(scale: float) -> Segmenter:
    """Return a network that predicts the highest channel, the surer the larger the scale."""
    network = Segmenter(nn.Identity(), nn.Conv2d(3, 3, 1), Card((0, 0, 0), (1, 1, 1))).eval()
    with torch.no_grad():
        network.classifier.weight.copy_(scale * torch.eye(3)[:, :, None, None])
        network.classifier.bias.zero_()
    return network


class Source:
    """A source model that counts how often it is loaded."""

    def __init__(self) -> None:
        self.loads = 0

    def load(self, device: str) -> SimpleNamespace:
        self.loads += 1
        return SimpleNamespace(network=network_of_colours(2.0).to(device))


@pytest.fixture
def examination(tmp_path: Path) -> Examination:
    """One held-out image, half red, a quarter green and a quarter blue, with four masks."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4, :, 0], pixels[4:, :4, 1], pixels[4:, 4:, 2] = 255, 255, 255
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    mask_ids = np.kron([[1, 2], [3, 4]], np.ones((4, 4), int))
    return Examination(CLASSES, held_out=(ImageFile("a", path),), id_map=lambda _: mask_ids)


def test_scores_are_relative_to_the_source_model(examination, tmp_path: Path):
    source, student = Source(), network_of_colours(9.0)
    watch = StudentWatch(examination, source, tmp_path / "train")
    scores = watch(student)
    expected = examination.with_source(source.load("cpu").network)(student)
    kept = {KEEP_SCORE: expected["anchored_information"], IS_COLLAPSED: 0.0}
    assert scores == expected | kept
    assert {"balanced_mask_information", "anchored_information"} <= set(scores)
    assert not {"balanced_mask_information", "anchored_information"} & set(examination(student))
    stored = json.loads((tmp_path / "train" / SOURCE_SCORES_FILE).read_text())
    assert stored["class_share"] == [0.5, 0.25, 0.25]
    assert stored["anchored_information"] > 0


def test_a_student_of_one_class_has_collapsed(examination, tmp_path: Path):
    student = network_of_colours(9.0)
    with torch.no_grad():
        student.classifier.bias.copy_(torch.tensor([99.0, 0.0, 0.0]))  # red everywhere
    scores = StudentWatch(examination, Source(), tmp_path)(student)
    assert (scores[IS_COLLAPSED], scores["predicted_classes"]) == (1.0, 1.0)
    assert scores[KEEP_SCORE] == 0.0


def test_without_masks_no_score_is_kept(examination, tmp_path: Path):
    examination = dataclasses.replace(examination, id_map=None)
    scores = StudentWatch(examination, Source(), tmp_path)(network_of_colours(9.0))
    assert KEEP_SCORE not in scores
    assert scores[IS_COLLAPSED] == 0.0


def test_the_source_model_is_scored_once(examination, tmp_path: Path):
    source, student = Source(), network_of_colours(9.0)
    first = StudentWatch(examination, source, tmp_path)(student)
    assert StudentWatch(examination, source, tmp_path)(student) == first  # as after a resume
    assert source.loads == 1


def test_a_run_of_an_older_version_scores_its_source_model_again(examination, tmp_path: Path):
    source, student = Source(), network_of_colours(9.0)
    first = StudentWatch(examination, source, tmp_path)(student)
    (tmp_path / REFERENCE_FILE).unlink()  # older versions wrote none
    assert StudentWatch(examination, source, tmp_path)(student) == first
    assert source.loads == 2


def test_without_held_out_images_the_source_model_is_not_loaded(tmp_path: Path):
    source = Source()
    watch = StudentWatch(Examination(CLASSES), source, tmp_path)
    assert watch.source_scores(network_of_colours(1.0)) == {}
    assert watch(network_of_colours(1.0)) == {}
    assert source.loads == 0
