"""What trials are compared by, and that a collapsed student never wins."""

from __future__ import annotations

import json
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sfss_ray.config import Config, TuneConfig, override
from sfss_ray.config.consistency import SCORES, require_held_out, score_name
from sfss_ray.data.class_sets import class_set_of
from sfss_ray.data.folders import ImageFile
from sfss_ray.errors import ConfigError, TrainingError
from sfss_ray.evaluation.examination import Examination
from sfss_ray.models.card import Card
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.tune.search import Trial, _restarts, best_trial
from sfss_ray.tune.trial_score import COLLAPSED, GUARDED, TrialWatch

CLASSES = class_set_of(["red", "green", "blue"])


def colours(*channels: int) -> Segmenter:
    """Predicts the channel that is highest, of those that are named; the others never."""
    network = Segmenter(nn.Identity(), nn.Conv2d(3, 3, 1), Card((0, 0, 0), (1, 1, 1))).eval()
    with torch.no_grad():
        network.classifier.weight.copy_(20 * torch.eye(3)[:, :, None, None])
        network.classifier.bias.fill_(-100)
        network.classifier.bias[list(channels)] = 0
    return network


class Source:
    """Stands for a source model that sees all three colours."""

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
def test_a_collapsed_student_never_wins_though_its_score_is_the_highest(watch, score):
    students = [colours(0, 1, 2), colours(1), colours(0, 1, 2)]
    looks = [watch(score)(student, colours(0, 1, 2)) for student in students]
    looks[1]["score"] = 1e9
    looks[2]["score"] += 0.1
    trials = [Trial(str(k), Path(), {}, look, "finished") for k, look in enumerate(looks)]
    assert best_trial(trials) == 2


def test_one_class_everywhere_has_the_highest_density(watch):
    sound, collapsed = (watch("neighbourhood_density")(colours(*c)) for c in ((0, 1, 2), (1,)))
    assert collapsed["score"] == pytest.approx(log(255), abs=1e-3)
    assert collapsed["score"] > sound["score"]


def test_a_class_of_three_may_go_missing_but_not_much_variety(watch):
    """Two of three classes are under 70 %, so this student counts as collapsed too."""
    assert watch("agreement")(colours(0, 1), colours(0, 1))["collapsed"] == 1


def test_the_source_model_is_scored_once_for_all_trials(watch, tmp_path):
    first = watch("mask_information")
    for _ in range(2):
        first(colours(0, 1, 2))
    assert first.source.loads == 1
    kept = json.loads((tmp_path / "source_scores.json").read_text())
    assert kept["class_share"] == pytest.approx([0.25, 0.5, 0.25])
    second = watch("mask_information")
    second(colours(0, 1, 2))
    assert second.source.loads == 0


def test_balanced_information_uses_the_shares_of_the_source(watch):
    seen = watch("balanced_mask_information")(colours(0, 1, 2))
    weighted = np.array([0.25 / 0.5, 0.5 / np.sqrt(0.5), 0.25 / 0.5])
    share = weighted / weighted.sum()
    assert seen["score"] == pytest.approx(-(share * np.log(share)).sum())


def test_failed_and_stopped_trials_do_not_win():
    def trial(score: float, status: str = "finished") -> Trial:
        return Trial("t", Path(), {}, {"score": score}, status, "out of memory")

    assert best_trial([trial(9, "stopped early"), trial(1), trial(2), trial(8, "failed")]) == 2
    with pytest.raises(TrainingError, match="no trial of 1 finished: out of memory"):
        best_trial([trial(1, "failed")])
    gone = Trial("t", Path(), {}, {"score": 5.0, "collapsed": 1.0}, "finished")
    with pytest.raises(TrainingError, match="all 1 finished trials collapsed"):
        best_trial([gone, trial(3, "stopped early")])


def test_scores_are_resolved_and_refused_before_anything_runs():
    assert score_name(TuneConfig(), labelled=True) == "val_miou"
    assert score_name(TuneConfig(), labelled=False) == "balanced_mask_information"
    assert score_name(TuneConfig(score="agreement"), labelled=True) == "agreement"
    with pytest.raises(ConfigError, match="no val_images and val_labels"):
        score_name(TuneConfig(score="val_miou"), labelled=False)
    require_held_out("val_miou", 0)
    with pytest.raises(ConfigError, match=r"raise\s+evaluation\.held_out_share above 0"):
        require_held_out("entropy", 0)


def test_every_score_can_be_asked_for():
    for score in SCORES:
        assert score_name(TuneConfig(score=score), labelled=False) == score
    with pytest.raises(ConfigError, match="allowed"):
        TuneConfig(score="accuracy")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("asked", "workers", "allowed"), [(2, 1, 2), (0, 1, 0), (-1, 1, 10), (2, 2, 0)]
)
def test_a_trial_is_never_started_again_without_end(asked, workers, allowed):
    """A trial whose loss is NaN fails again each time; trials of several restart inside Ray Train."""
    compute = {"compute.max_failures": asked, "compute.num_workers": workers}
    assert _restarts(override(Config(), compute)) == allowed


def scored(score: float, **metrics: float) -> Trial:
    return Trial("t", Path(), {}, {"score": score, "collapsed": 0.0} | metrics, "finished")


def test_a_trial_without_a_score_is_never_picked():
    assert best_trial([scored(float("nan")), scored(0.2), scored(0.1)]) == 1
    assert best_trial([scored(float("-inf")), scored(-3.0)]) == 1
    with pytest.raises(TrainingError, match="none of 2 finished trials has a score"):
        best_trial([scored(float("nan")), scored(float("nan"))])
    without = Trial("t", Path(), {}, {"step": 3.0}, "finished")
    with pytest.raises(TrainingError, match="none of 1 finished trials has a score"):
        best_trial([without])


def test_tune_is_never_told_nan(watch):
    """NaN is neither greater nor smaller than others: a scheduler would keep what it met first."""
    network = colours(0, 1, 2)
    with torch.no_grad():
        network.classifier.weight.fill_(float("nan"))
    seen = watch("entropy")(network)
    assert seen[GUARDED] == COLLAPSED
    assert "score" not in seen
