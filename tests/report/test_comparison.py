"""Comparisons of rows and trials, against values worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from report_samples import adapt_report, change_row, tune_report

from sfss_ray.report.comparison import (
    class_changes,
    class_scores,
    label_free_name,
    label_free_score,
    rank_correlation,
)
from sfss_ray.report.report_record import RunRecord, ScoreRow, TrialRow


def test_class_scores_have_one_entry_per_class():
    row = ScoreRow("a", per_class=(50.0, float("nan"), None, 7.0))
    assert class_scores(row, 3) == [50.0, None, None]
    assert class_scores(row, 6) == [50.0, None, None, 7.0, None, None]
    assert class_scores(None, 2) == class_scores(ScoreRow("b"), 2) == [None, None]


def test_class_changes_compare_the_answer_with_the_first_row():
    changes = class_changes(adapt_report())
    assert changes[:2] == [pytest.approx(30.4), pytest.approx(-4.2)]
    assert changes[2] is None
    assert class_changes(change_row(adapt_report(), 1, per_class=None)) == [None] * 3
    assert class_changes(RunRecord()) == []


@pytest.mark.parametrize(
    ("score_name", "column"),
    [
        ("entropy", "entropy"),
        ("val_miou", "mask_information"),
        ("miou", "mask_information"),
        (None, "mask_information"),
    ],
)
def test_the_label_free_score_is_the_one_of_the_search(score_name, column):
    assert label_free_name(RunRecord(score_name=score_name)) == column


def test_the_score_of_the_verdict_is_shown_where_it_is_known():
    rows = (ScoreRow("source-only", anchored_information=0.9), ScoreRow("adapted"))
    assert label_free_name(RunRecord(rows=rows)) == "anchored_information"
    assert label_free_name(RunRecord(rows=rows, score_name="miou")) == "anchored_information"
    assert label_free_name(RunRecord(rows=rows, score_name="entropy")) == "entropy"
    trials = (TrialRow("trial 1", anchored_information=0.8),)
    assert label_free_name(RunRecord(trials=trials)) == "anchored_information"


def test_a_trial_without_the_named_score_shows_the_score_it_was_compared_by():
    trial = TrialRow("trial 1", score=0.4, entropy=0.2)
    assert label_free_score(RunRecord(score_name="entropy"), trial) == 0.2
    assert label_free_score(RunRecord(score_name="agreement"), trial) == 0.4
    assert label_free_score(RunRecord(score_name="val_miou"), trial) is None
    assert label_free_score(RunRecord(score_name="agreement"), ScoreRow("a")) is None


def test_rank_correlation_counts_finished_trials_only():
    assert rank_correlation(tune_report().trials) == (pytest.approx(1.0), 3)
    assert rank_correlation(tune_report().trials[:2]) is None


def test_rank_correlation_shares_ranks_of_equal_scores():
    pairs = [(1.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]
    trials = [TrialRow("t", status="finished", mask_information=a, miou=b) for a, b in pairs]
    expected = np.corrcoef([0.5, 0.5, 2, 3], [0, 1, 2, 3])[0, 1]
    assert rank_correlation(trials) == (pytest.approx(expected), 4)
    assert rank_correlation([replace(trial, miou=1.0) for trial in trials]) is None
