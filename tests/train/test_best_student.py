"""Which student of a training is kept, and that it survives an interruption."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from train_samples import adaptation_task, flat_state, sharp_source, small_config, write_dataset

from sfss_ray.train.adaptation import adapt_student
from sfss_ray.train.best_student import BestStudent, kept_state
from sfss_ray.train.run_state import LocalRun, load_state
from sfss_ray.train.student_watch import IS_COLLAPSED, KEEP_SCORE


def network(value: float) -> nn.Module:
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, value)
    return module


def offered(*scores: dict[str, float]) -> BestStudent:
    """Offer networks whose weights are their step, and their teachers' the negative."""
    best = BestStudent()
    for step, score in enumerate(scores, 1):
        best.offer(step, score, network(step), network(-step))
    return best


@pytest.mark.parametrize(
    ("scores", "step"),
    [
        ([0.1, 0.3, 0.2], 2),
        ([0.3, 0.3, 0.2], 2),  # of equal ones the later
        ([math.nan, 0.1, math.nan], 2),
        ([-0.3, -0.1, -0.2], 2),
    ],
)
def test_the_best_score_is_kept(scores, step):
    state = {"step": 3} | offered(*({KEEP_SCORE: score} for score in scores)).state_dict()
    kept, which = kept_state(state)
    assert (kept["step"], which) == (step, "best")
    assert kept["student"]["weight"].item() == step
    assert kept["teacher"]["weight"].item() == -step


def test_a_collapsed_student_is_never_kept():
    collapsed = {KEEP_SCORE: 9.0, IS_COLLAPSED: 1.0}
    state = offered({KEEP_SCORE: 0.1, IS_COLLAPSED: 0.0}, collapsed).state_dict()
    assert kept_state(state)[0]["step"] == 1
    assert offered(collapsed).state_dict() == {}


def test_without_a_score_the_last_student_is_kept():
    state = {"step": 8, "student": {}, "teacher": {}} | offered({}, {}).state_dict()
    assert kept_state(state) == (state, "last")


def test_training_on_does_not_change_what_is_kept():
    student, best = network(1.0), BestStudent()
    best.offer(1, {KEEP_SCORE: 1.0}, student, network(2.0))
    nn.init.zeros_(student.weight)
    assert kept_state(best.state_dict())[0]["student"]["weight"].item() == 1.0


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_dataset(tmp_path_factory.mktemp("best"))
    sharp_source(root / "source.pt")
    return root


class Watch:
    """Scores each evaluation by its number: the second of four is the best."""

    scores = (0.2, 0.9, 0.4, 0.3)

    def __init__(self, done: int = 0):
        self.calls = done

    def __call__(self, student, teacher):
        self.calls += 1
        return {KEEP_SCORE: self.scores[self.calls - 1], IS_COLLAPSED: 0.0}


class Interrupted(Exception):
    """Stands for a machine that stops."""


def train(root, folder, config, done: int = 0, stop: int | None = None) -> dict:
    def on_report(metrics):
        if metrics["step"] == stop:
            raise Interrupted

    task = adaptation_task(root, root / "source.pt", config)
    adapt_student(task, LocalRun(folder, on_report=on_report), Watch(done))
    return load_state(folder)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_an_interrupted_run_keeps_the_student_of_an_uninterrupted_one(root, tmp_path, stop):
    config = small_config(num_steps=4, evaluate_every=1, keep="best")
    whole = train(root, tmp_path / "whole", config)
    with pytest.raises(Interrupted):
        train(root, tmp_path / "parts", config, stop=stop)
    resumed = train(root, tmp_path / "parts", config, done=stop)
    for state in (whole, resumed):
        assert (state["step"], state["best"]["step"], state["best"]["score"]) == (4, 2, 0.9)
    first, second = (flat_state(dict(kept_state(state)[0])) for state in (whole, resumed))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=1e-6)


def test_the_kept_student_is_that_of_a_training_that_ends_there(root, tmp_path):
    """The learning rate depends on num_steps, so it is made constant here."""
    changes = {"evaluate_every": 1, "optim__poly_power": 0.0, "optim__warmup_share": 0.0}
    changes |= {"loss__ramp": [0.0, 0.0]}
    best = train(root, tmp_path / "a", small_config(num_steps=4, keep="best", **changes))
    last = train(root, tmp_path / "b", small_config(num_steps=2, **changes))
    assert "best" not in last
    for name in ("student", "teacher"):
        kept = kept_state(best)[0][name]
        for key, tensor in last[name].items():
            torch.testing.assert_close(kept[key], tensor, rtol=0, atol=1e-6)


def test_the_knob_does_not_change_the_training(root, tmp_path):
    states = [
        train(root, tmp_path / keep, small_config(num_steps=2, evaluate_every=1, keep=keep))
        for keep in ("last", "best")
    ]
    first, second = (flat_state({"student": state["student"]}) for state in states)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
