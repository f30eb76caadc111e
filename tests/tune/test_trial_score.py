"""The score that trials are compared by, and its guard against collapsed students."""

from __future__ import annotations

import json
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sfss_ray.config.consistency import SCORES
from sfss_ray.data.class_sets import class_set_of
from sfss_ray.data.folders import ImageFile
from sfss_ray.evaluation.examination import Examination
from sfss_ray.models.card import Card
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.tune.trial import Trial, best_trial
from sfss_ray.tune.trial_score import COLLAPSED, GUARDED, TrialWatch

CLASSES = class_set_of(["red", "green", "blue"])


def colours(*channels: int) -> Segmenter:
    """Return a network that predicts the highest of the named channels, never another."""
    network = Segmenter(nn.Identity(), nn.Conv2d(3, 3, 1), Card((0, 0, 0), (1, 1, 1))).eval()
    with torch.no_grad():
        network.classifier.weight.copy_(20 * torch.eye(3)[:, :, None, None])
        network.classifier.bias.fill_(-100)
        network.classifier.bias[list(channels)] = 0
    return network


class Source:
    """Stands for a source model that predicts all three colours."""

    def __init__(self):
        self.loads = 0

    def load(self, device):
        self.loads += 1
        return type("Model", (), {"network": colours(0, 1, 2)})()


@pytest.fixture
def ids() -> np.ndarray:
    ids = np.zeros((64, 96), np.int32)
    ids[:, 48:], ids[32:, :48] = 1, 2
    return ids


@pytest.fixture
def watch(tmp_path: Path, ids):
    Image.fromarray((np.eye(3)[ids] * 255).astype(np.uint8)).save(tmp_path / "a.png")
    held_out = (ImageFile("a", tmp_path / "a.png"),)
    examination = Examination(CLASSES, (), held_out, lambda _: ids + 1)

    def make(score: str) -> TrialWatch:
        return TrialWatch(examination, score, Source(), tmp_path)

    return make


@pytest.mark.parametrize("score", SCORES)
def test_a_student_of_one_class_is_collapsed_by_every_score(watch, score):
    sound, collapsed = (watch(score)(colours(*c), colours(*c)) for c in ((0, 1, 2), (1,)))
    assert (sound["collapsed"], collapsed["collapsed"]) == (0, 1)
    assert sound[GUARDED] == sound["score"]
    assert collapsed[GUARDED] == COLLAPSED < sound[GUARDED]
    assert collapsed["predicted_classes"] == 1


@pytest.mark.parametrize("score", ["agreement", "entropy", "neighbourhood_density"])
def test_a_collapsed_student_never_wins_even_with_the_highest_score(watch, score):
    students = [colours(0, 1, 2), colours(1), colours(0, 1, 2)]
    metrics = [watch(score)(student, colours(0, 1, 2)) for student in students]
    metrics[1]["score"] = 1e9
    metrics[2]["score"] += 0.1
    trials = [Trial(str(k), Path(), {}, m, "finished") for k, m in enumerate(metrics)]
    assert best_trial(trials) == 2


def test_one_class_everywhere_has_the_highest_density(watch):
    sound, collapsed = (watch("neighbourhood_density")(colours(*c)) for c in ((0, 1, 2), (1,)))
    assert collapsed["score"] == pytest.approx(log(255), abs=1e-3)
    assert collapsed["score"] > sound["score"]


def test_a_student_without_one_of_three_classes_is_collapsed(watch):
    """Two of three classes are less than 70 %, the limit of a collapse."""
    assert watch("agreement")(colours(0, 1), colours(0, 1))["collapsed"] == 1


def test_the_source_model_is_scored_once_for_all_trials(watch, tmp_path):
    first = watch("mask_information")
    for _ in range(2):
        first(colours(0, 1, 2))
    assert first.source.loads == 1
    saved = json.loads((tmp_path / "source_scores.json").read_text())
    assert saved["class_share"] == pytest.approx([0.25, 0.5, 0.25])
    second = watch("mask_information")
    second(colours(0, 1, 2))
    assert second.source.loads == 0


def test_balanced_information_uses_the_shares_of_the_source(watch):
    scores = watch("balanced_mask_information")(colours(0, 1, 2))
    weighted = np.array([0.25 / 0.5, 0.5 / np.sqrt(0.5), 0.25 / 0.5])
    share = weighted / weighted.sum()
    assert scores["score"] == pytest.approx(-(share * np.log(share)).sum())


def test_tune_never_gets_a_nan(watch):
    """A NaN compares with nothing, so a scheduler would keep whatever came first."""
    network = colours(0, 1, 2)
    with torch.no_grad():
        network.classifier.weight.fill_(float("nan"))
    scores = watch("entropy")(network)
    assert scores[GUARDED] == COLLAPSED
    assert "score" not in scores
