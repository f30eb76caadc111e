"""Judging label-free scores: ranks, and that a collapsed trial is never a pick."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "studies" / "score_quality.py"


@pytest.fixture
def score_quality(experiment):
    return experiment("score_quality")


def trial(number: int, miou: float, value: float, collapsed: bool = False) -> dict:
    names = ("mask_information", "balanced_mask_information", "agreement", "neighbourhood_density")
    names += ("anchored_information", "consistency_over_source_classes")
    names += ("view_consistency", "steadiness", "source_agreement", "views_of_both", "kept_anchors")
    names += ("information_maximum", "committee")
    facts = {"trial": number, "miou": miou, "collapsed": collapsed}
    return facts | dict.fromkeys(names, value) | {"entropy": 1 - value, "class_entropy": value}


def test_ranks_are_spearmans(score_quality):
    from scipy.stats import spearmanr

    ones, others = [3.0, 1.0, 2.0, 2.0, 9.0], [0.1, 0.4, 0.3, 0.2, 0.1]
    assert score_quality.spearman(ones, others) == pytest.approx(spearmanr(ones, others)[0])
    assert math.isnan(score_quality.spearman([1.0, 1.0], [1.0, 2.0]))


def test_picks_are_the_best_that_did_not_collapse(score_quality):
    trials = [trial(1, 40, 0.5), trial(2, 45, 0.6), trial(3, 1, 0.9, collapsed=True)]
    for row in score_quality.judge_scores(trial(0, 42, 0.55), trials):
        if row["score"] == "mask_information / class entropy":
            continue  # the same for all of these
        assert (row["pick"], row["pick_miou"]) == (2, 45)
        assert (row["pick_unguarded"], row["pick_unguarded_collapsed"]) == (3, True)
        assert row["spearman"] == pytest.approx(-0.5)
        assert row["spearman_sound"] == pytest.approx(1)


def test_verdicts_are_counted_where_mious_differ(score_quality):
    steady = {name: [1.0, 1.1, 0.9, 1.0] for name in score_quality.JUDGES}

    def judged(number, miou, value, collapsed=False):
        without = {name: [v + value - 1 for v in values] for name, values in steady.items()}
        return trial(number, miou, value, collapsed) | {"leave_one_out": without}

    source = judged(0, 50, 1.0)
    trials = [
        judged(1, 53, 1.5),  # right
        judged(2, 47, 1.5),  # wrong
        judged(3, 48, 0.5),  # right
        judged(4, 53, 1.0),  # no change of the score
        judged(5, 50.5, 0.1),  # hardly another mIoU
        judged(6, 1, 3.0, collapsed=True),
    ]
    for row in score_quality.verdicts(source, trials):
        assert (row["right"], row["silent"], row["wrong"]) == (2, 1, 1)


def test_the_source_model_is_the_pick_where_its_score_is_best(score_quality):
    trials = [trial(1, 40, 0.5), trial(2, 41, 0.6)]
    for row in score_quality.judge_scores(trial(0, 50, 0.8), trials):
        if row["score"] == "mask_information / class entropy":
            continue
        with_source = 41 if "teacher" in row["score"] else 50
        assert (row["pick_miou"], row["pick_with_source_miou"]) == (41, with_source)


def test_trials_are_sixteen_or_more_and_all_different(score_quality):
    from score_trials import ENTROPY_POINTS, NAMES, POINTS

    assert len(POINTS) >= 16
    assert len(set(POINTS)) == len(POINTS)
    assert len(set(ENTROPY_POINTS)) == len(ENTROPY_POINTS)
    assert all(len(point) == len(NAMES) for point in (*POINTS, *ENTROPY_POINTS))
    varied = {name: {point[NAMES.index(name)] for point in POINTS} for name in NAMES}
    assert varied["train.batch_norm"] == {"frozen", "adapt", "target"}
    assert len(varied["train.statistics_share"]) >= 4


@pytest.mark.slow
def test_a_quick_try_trains_scores_and_tabulates(tmp_path):
    command = [sys.executable, str(SCRIPT), "--pair", "streets", "--images", "16", "--trials", "2"]
    command += ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]

    def written() -> dict[str, int]:
        result = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert result.returncode == 0, result.stdout + result.stderr
        return {str(p): p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("*.npz")}

    first = written()
    assert len(first) == 3
    assert written() == first  # the second call trains and scores nothing
    stem = tmp_path / "results" / "score_quality_streets"
    record = json.loads(stem.with_suffix(".json").read_text())
    assert record["command"].endswith("score_quality.py --pair streets")
    assert [trial["trial"] for trial in record["rows"]] == [1, 2]
    assert record["source"]["miou"] == pytest.approx(44.44, abs=0.05)
    assert record["source"]["source_agreement"] == 1
    assert all(0 < trial["committee"] <= 1 for trial in record["rows"])
    assert "| steadiness |" in stem.with_suffix(".md").read_text()
