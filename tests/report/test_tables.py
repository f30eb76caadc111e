"""Text tables: what stands in which line, missing values, width."""

import numpy as np
import pytest
from report_samples import adapt_report, tune_report, unlabelled_report

from sfss_ray.report.tables import (
    MAX_WIDTH,
    answer_name,
    baseline_and_answer,
    is_oracle,
    knob,
    number,
    per_class_table,
    rank_correlation,
    results_table,
    signed,
)


def lines_with(text, start):
    return [line.split() for line in text.splitlines() if line.startswith(start)]


@pytest.mark.parametrize(
    "missing", [None, float("nan"), float("inf"), np.float32("nan"), "x", True]
)
def test_what_is_no_number_is_a_dash(missing):
    assert number(missing) == "-"


def test_numbers_changes_and_knobs_as_people_write_them():
    assert number(np.float32(38.14)) == "38.1"
    assert [signed(v) for v in (13.1, -0.4, 0.04, -0.01, None)] == [
        "+13.1",
        "-0.4",
        "0.0",
        "0.0",
        "-",
    ]
    assert [knob(v) for v in (0.1, 0.031234, 0.999, 0.9999999, None)] == [
        "0.1",
        "0.03123",
        "0.99900",
        "0.99999990",
        "-",
    ]


def test_the_answer_is_adapted_or_else_the_last_row():
    assert answer_name(["source-only", "adapted", "self-training"]) == "adapted"
    assert answer_name(["source-only", "self-training"]) == "self-training"
    assert answer_name(["adapted"]) is None
    assert baseline_and_answer({}) == (None, None)


def test_adapt_table_has_both_rows_and_the_gain():
    table = results_table(adapt_report())
    assert lines_with(table, "source-only") == [["source-only", "38.1", "-", "80.2", "1.030"]]
    assert lines_with(table, "adapted") == [["adapted", "51.2", "+13.1", "86.0", "1.210"]]
    assert "network student, step last (400 of 400), seed 0, classes three" in table


def test_tune_table_lists_source_only_then_trials_then_the_best():
    table = results_table(tune_report())
    starts = [line.split("  ")[0] for line in table.splitlines()[4:]]
    assert starts == ["source-only", *(f"trial {k}" for k in range(1, 6)), "best: trial 3"]
    best = lines_with(table, "best")[0]
    assert best == ["best:", "trial", "3", "0.5", "0.1", "0.99900", "46.0", "1.300", "finished"]
    failed = lines_with(table, "trial 5")[0]
    assert failed == ["trial", "5", "0.03", "2", "0.99000", "-", "-", "failed"]


def test_columns_are_aligned_and_narrow_enough():
    long_name = "a very long trial name that never seems to end"
    trials = [{**tune_report()["trials"][0], "name": long_name, "status": "stopped early"}]
    table = results_table(
        tune_report(trials=trials, best_trial=0, score_name="density_of_neighbours")
    )
    assert max(map(len, table.splitlines())) <= MAX_WIDTH
    header, row = table.splitlines()[3], lines_with(table, "a very long ...")[0]
    assert "density_of_ne..." in header
    assert row[-2:] == ["stopped", "early"]


def test_the_label_free_column_never_shows_an_oracles_miou():
    trials = [{**trial, "score": trial["miou"]} for trial in tune_report()["trials"]]
    del trials[0]["mask_information"]
    table = results_table(tune_report(trials=trials, score_name="val_miou", oracle=True))
    assert lines_with(table, "trial 1")[0][-3:] == ["44.0", "-", "finished"]
    assert "ORACLE" in table


def test_oracle_is_known_from_either_place():
    assert is_oracle({"labels": {"used_for": "choosing (oracle)"}})
    assert is_oracle({"oracle": True})
    assert not is_oracle(adapt_report())


def test_unlabelled_reports_say_so():
    table = results_table(unlabelled_report())
    assert "no labels were given: the scores below need none" in table
    assert lines_with(table, "adapted") == [["adapted", "-", "-", "-", "2.000"]]
    assert per_class_table(unlabelled_report()) == "no IoU per class: no labels were given"


def test_per_class_table_shows_gains_losses_and_absent_classes():
    lines = [line.split() for line in per_class_table(adapt_report()).splitlines()]
    assert lines[1:] == [
        ["road", "50.0", "80.4", "+30.4"],
        ["car", "26.2", "22.0", "-4.2"],
        ["train", "-", "-", "-"],
    ]


def test_per_class_table_keeps_the_answer_and_counts_what_does_not_fit():
    report = adapt_report()
    source, adapted = report["rows"]
    others = [{**adapted, "name": f"another method {k}"} for k in range(9)]
    report["rows"] = [source, *others, adapted]
    lines = per_class_table(report).splitlines()
    assert max(map(len, lines)) <= MAX_WIDTH
    assert "source-only" in lines[0]
    assert "adapted" in lines[0]
    left_out = int(lines[-1].split()[2])  # "... and N more rows"
    assert left_out == 9 - lines[0].count("another")


def test_an_empty_report_is_no_error():
    assert results_table({}).startswith("Report")
    assert per_class_table({}) == "no IoU per class: no labels were given"


def test_rank_correlation_counts_finished_trials_only():
    assert rank_correlation(tune_report()["trials"]) == (pytest.approx(1.0), 3)
    assert rank_correlation(tune_report()["trials"][:2]) is None


def test_rank_correlation_shares_ranks_of_equal_scores():
    pairs = [(1.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]
    trials = [{"status": "finished", "mask_information": a, "miou": b} for a, b in pairs]
    found = rank_correlation(trials)
    expected = np.corrcoef([0.5, 0.5, 2, 3], [0, 1, 2, 3])[0, 1]
    assert found == (pytest.approx(expected), 4)
    assert rank_correlation([{**trial, "miou": 1.0} for trial in trials]) is None


def test_all_label_free_scores_of_trials_and_their_ranks_are_shown():
    def trial(number, miou, agreement, collapsed=False):
        values = {"miou": miou, "agreement": agreement, "mask_information": 1 - agreement}
        values |= {"predicted_classes": 2.0, "collapsed": collapsed, "status": "finished"}
        return {"name": f"trial {number}"} | values

    trials = [trial(1, 30, 0.5), trial(2, 40, 0.7), trial(3, 10, 0.2), trial(4, 1, 0.1, True)]
    text = results_table({"trials": trials, "best_trial": 1, "score_name": "agreement"})
    lines = [line.split() for line in text.splitlines()]
    assert ["mask", "inf.", "agreement", "classes"] in lines
    assert ["trial", "2", "0.300", "0.700", "2"] in lines
    assert ["Spearman,", "mIoU", "-1.00", "+1.00", "-"] in lines
    statuses = [line[-1] for line in lines if line[:2] == ["trial", "4"]]
    assert statuses[0] == "collapsed"
    assert max(map(len, text.splitlines())) <= 100
