"""Trials: which one is best, their folders and records, and when they are evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sfss_ray.config import Config, override
from sfss_ray.errors import TrainingError
from sfss_ray.tune.trial import (
    Trial,
    best_trial,
    evaluations_per_trial,
    grace_steps,
    progress_folder,
    trial_folder,
)


def scored(score: float, **metrics: float) -> Trial:
    return Trial("t", Path(), {}, {"score": score, "collapsed": 0.0} | metrics, "finished")


def test_failed_and_stopped_trials_do_not_win():
    def trial(score: float, status: str = "finished") -> Trial:
        return Trial("t", Path(), {}, {"score": score}, status, "out of memory")

    assert best_trial([trial(9, "stopped early"), trial(1), trial(2), trial(8, "failed")]) == 2
    with pytest.raises(TrainingError, match="no trial of 1 finished: out of memory"):
        best_trial([trial(1, "failed")])
    collapsed = Trial("t", Path(), {}, {"score": 5.0, "collapsed": 1.0}, "finished")
    with pytest.raises(TrainingError, match="all 1 finished trials collapsed"):
        best_trial([collapsed, trial(3, "stopped early")])


def test_a_trial_without_a_score_is_never_picked():
    assert best_trial([scored(float("nan")), scored(0.2), scored(0.1)]) == 1
    assert best_trial([scored(float("-inf")), scored(-3.0)]) == 1
    with pytest.raises(TrainingError, match="none of 2 finished trials has a score"):
        best_trial([scored(float("nan")), scored(float("nan"))])
    without = Trial("t", Path(), {}, {"step": 3.0}, "finished")
    with pytest.raises(TrainingError, match="none of 1 finished trials has a score"):
        best_trial([without])


def test_a_failed_trial_has_no_score():
    assert Trial("t", Path(), {}, {"score": 5.0}, "failed").score == float("-inf")
    assert Trial("t", Path(), {}, {"score": 5.0}, "stopped early").score == 5.0
    assert not Trial("t", Path(), {}, {}, "finished").collapsed


def test_trials_without_a_reason_are_named():
    with pytest.raises(TrainingError, match="no trial of 2 finished: none finished"):
        best_trial([Trial("t", Path(), {}, {}, "stopped early")] * 2)


def test_a_trial_is_restored_from_json():
    trial = Trial("trial 1", Path("a/b"), {"x": 0.5}, {"score": 1.5}, "failed", "out of memory")
    assert Trial.from_json(json.loads(json.dumps(trial.as_json())), trial.folder.parent) == trial


def test_the_same_values_have_the_same_folder():
    values = {"train.ema_momentum": 0.999, "train.loss.temperature": 0.1}
    reordered = dict(reversed(values.items()))
    folder = trial_folder(Path("run"), values)
    assert folder == trial_folder(Path("run"), reordered)
    assert folder.name == "trial-4d31a5c595"  # interrupted searches resume by this name
    assert folder != trial_folder(Path("run"), values | {"train.ema_momentum": 0.99})


@pytest.mark.parametrize(("workers", "folder"), [(1, "trial-0"), (2, "trial-0/train")])
def test_progress_lies_where_the_training_writes_it(workers, folder):
    config = override(Config(), {"compute.num_workers": workers})
    assert progress_folder(Path("trial-0"), config) == Path(folder)


def steps(num_steps: int, every: int, ramp: list[float]) -> Config:
    return override(
        Config(),
        {"train.num_steps": num_steps, "train.evaluate_every": every, "train.loss.ramp": ramp},
    )


@pytest.mark.parametrize(("num_steps", "every", "number"), [(10, 5, 2), (11, 5, 3), (3, 9, 1)])
def test_evaluations_include_the_last_step(num_steps, every, number):
    assert evaluations_per_trial(steps(num_steps, every, [0, 0])) == number


@pytest.mark.parametrize(
    ("ramp_end", "grace"), [(0.0, 10), (0.05, 10), (0.1, 20), (0.25, 30), (0.95, 100), (1.0, 100)]
)
def test_trials_are_stopped_only_after_the_ramp(ramp_end, grace):
    assert grace_steps(steps(100, 10, [0.0, ramp_end])) == grace
