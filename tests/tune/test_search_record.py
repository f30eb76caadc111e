"""The trials of a search as rows of a report."""

from pathlib import Path

import pytest

from sfss_ray.config.consistency import SCORES
from sfss_ray.report.report_record import TrialRow
from sfss_ray.tune.search import SearchResult, Trial
from sfss_ray.tune.search_record import trial_rows

VALUES = {
    "train.loss.temperature": 0.1,
    "train.loss.contrast_weight": 0.03,
    "train.ema_momentum": 0.99,
}


def search(*trials: Trial) -> SearchResult:
    return SearchResult(list(trials), 0, "entropy", False, Path("best_config.json"))


def test_a_finished_trial_has_its_knobs_and_last_scores():
    metrics = {"step": 160, "val_miou": 47.4, "score": -0.28, "collapsed": 0.0, "loss": 0.2}
    metrics |= {name: float(k) for k, name in enumerate(SCORES)}
    metrics |= {"predicted_classes": 17.0, "class_entropy": 1.9}
    (row,) = trial_rows(search(Trial("trial 1", Path("t"), VALUES, metrics, "finished")))
    assert (row.name, row.status, row.error) == ("trial 1", "finished", "")
    assert row.values == VALUES
    assert (row.steps, row.miou, row.score, row.collapsed) == (160, 47.4, -0.28, False)
    assert [getattr(row, name) for name in SCORES] == list(range(len(SCORES)))
    assert (row.predicted_classes, row.class_entropy) == (17.0, 1.9)


def test_a_trial_that_failed_at_once_has_no_scores():
    trial = Trial("trial 2", Path("t"), VALUES, {}, "failed", "the loss became NaN")
    (row,) = trial_rows(search(trial))
    assert row == TrialRow(
        "trial 2", VALUES, 0, "failed", collapsed=False, error="the loss became NaN"
    )


@pytest.mark.parametrize("collapsed", [0.0, 1.0])
def test_a_collapse_is_recorded(collapsed):
    trial = Trial("trial 3", Path("t"), VALUES, {"step": 8, "collapsed": collapsed}, "finished")
    assert trial_rows(search(trial))[0].collapsed is bool(collapsed)


def test_trials_keep_their_order():
    trials = [Trial(f"trial {k}", Path("t"), VALUES, {}, "finished") for k in (3, 1, 2)]
    assert [row.name for row in trial_rows(search(*trials))] == ["trial 3", "trial 1", "trial 2"]
    assert trial_rows(search()) == ()
