"""Importance of searched settings over trials whose score is made up."""

import numpy as np
import pytest
from report_samples import tune_report

from sfss_ray.report.importance import MIN_TRIALS, find_importance, importance_lines
from sfss_ray.report.page import render_page
from sfss_ray.report.report_record import RunRecord, TrialRow
from sfss_ray.report.tables import results_table


def trials(count, score, seed=0):
    """Return trials with random settings and `score(values, rng)`."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(count):
        values = {
            "train.loss.temperature": float(np.exp(rng.uniform(np.log(0.03), np.log(0.7)))),
            "train.loss.vote_weight": float(rng.uniform(0.2, 1)),
            "train.batch_norm": str(rng.choice(["auto", "frozen"])),
            "train.augment.flip": bool(rng.integers(2)),
        }
        rows.append(TrialRow(f"trial {k}", values, status="finished", score=score(values, rng)))
    return tuple(rows)


def test_the_setting_that_decides_the_score_matters():
    def score(values, rng):
        return -np.log(values["train.loss.temperature"]) + rng.normal(0, 0.2)

    importance = find_importance(trials(20, score))
    assert importance is not None
    assert importance.matters == ("temperature",)
    assert next(iter(importance.shares)) == "temperature"
    assert importance.shares["temperature"] > 0.6
    assert sum(importance.shares.values()) == pytest.approx(1)
    (_, line) = importance_lines(RunRecord(trials=trials(20, score)))
    sentences = line.split(". ")
    assert sentences[0] == "temperature matters over 20 trials"
    assert sentences[1] == "The other settings explain the score no better than chance"
    assert sentences[2].startswith("Importance by PED-ANOVA: temperature")


def test_a_name_that_decides_the_score_matters():
    def score(values, rng):
        return (values["train.batch_norm"] == "auto") + rng.normal(0, 0.1)

    importance = find_importance(trials(24, score))
    assert importance is not None
    assert importance.matters == ("batch_norm",)


def test_scores_by_chance_matter_in_at_most_one_search_of_five():
    found = [find_importance(trials(20, lambda _, rng: rng.normal(), seed)) for seed in range(20)]
    significant = [importance for importance in found if importance and importance.matters]
    assert len(significant) <= 4
    quiet = next(importance for importance in found if importance and not importance.matters)
    assert quiet.text().startswith("None of the searched settings matters measurably")
    assert "20 trials" in quiet.text()
    shares = quiet.text().split("Importance by PED-ANOVA: ")[1]
    assert all(
        f"{name} " in shares for name in ("temperature", "vote_weight", "batch_norm", "flip")
    )


def test_page_and_printed_table_show_the_importance():
    rows = trials(20, lambda values, rng: -values["train.loss.temperature"] + rng.normal(0, 0.02))
    importance = find_importance(rows)
    assert importance is not None
    record = tune_report(trials=rows, best_trial=0)
    assert importance.text() in results_table(record)
    assert importance.text() in render_page(record)


def test_few_trials_or_equal_scores_say_nothing():
    assert find_importance(trials(MIN_TRIALS - 1, lambda _, rng: rng.normal())) is None
    assert find_importance(trials(20, lambda _values, _rng: 1.0)) is None
    assert find_importance(()) is None
    assert importance_lines(RunRecord()) == []


def test_trials_without_a_score_and_collapsed_ones_do_not_count():
    rows = trials(8, lambda _, rng: rng.normal())
    failed = [
        TrialRow("failed", rows[0].values),
        TrialRow("c", rows[0].values, score=1.0, collapsed=True),
    ]
    importance = find_importance([*rows, *failed])
    assert importance is not None
    assert importance.num_trials == 8
