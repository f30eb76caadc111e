"""The printed tables: which line holds what, missing values, width."""

from dataclasses import replace

from report_samples import adapt_report, change_row, change_trial, tune_report, unlabelled_report

from sfss_ray.report.report_record import ExternalFacts, RunRecord, TrialRow
from sfss_ray.report.tables import MAX_WIDTH, per_class_table, results_table


def lines_with(text, start):
    return [line.split() for line in text.splitlines() if line.startswith(start)]


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
    trials = (replace(tune_report().trials[0], name=long_name, status="stopped early"),)
    table = results_table(
        tune_report(trials=trials, best_trial=0, score_name="density_of_neighbours")
    )
    assert max(map(len, table.splitlines())) <= MAX_WIDTH
    header, row = table.splitlines()[3], lines_with(table, "a very long ...")[0]
    assert "density_of_ne..." in header
    assert row[-2:] == ["stopped", "early"]


def with_settings(names):
    """Return a search of the sample report in which trials also vary other settings."""
    trials = [
        replace(trial, values=trial.values | dict.fromkeys(names, 0.5))
        for trial in tune_report().trials
    ]
    return tune_report(trials=tuple(trials))


def test_titles_stand_in_two_lines_where_one_has_no_room():
    table = results_table(with_settings(["train.loss.neighbour_weight"]))
    upper, lower, source = (line.split() for line in table.splitlines()[3:6])
    assert upper[:3] == ["contrast", "ema", "neighbour"]
    assert lower[:5] == ["temperature", "weight", "momentum", "weight", "mIoU"]
    assert source[0] == "source-only"
    assert lines_with(table, "trial 1")[0][2:6] == ["0.1", "0.1", "0.99900", "0.5"]
    assert "more in report.json" not in table
    assert max(map(len, table.splitlines())) <= MAX_WIDTH


def test_settings_that_have_no_room_at_all_are_counted():
    names = [f"train.loss.{word}_weight" for word in ("concept", "metric", "output", "ring")]
    table = results_table(with_settings(names))
    assert "... and 3 more in report.json" in table.splitlines()
    assert max(map(len, table.splitlines())) <= MAX_WIDTH


def test_the_label_free_column_never_shows_the_miou_of_an_oracle():
    trials = tuple(replace(trial, score=trial.miou) for trial in tune_report().trials)
    report = tune_report(trials=trials, score_name="val_miou", oracle=True)
    table = results_table(change_trial(report, 0, mask_information=None))
    assert lines_with(table, "trial 1")[0][-3:] == ["44.0", "-", "finished"]
    assert "ORACLE" in table


def test_rows_show_the_score_of_the_verdict():
    report = change_row(adapt_report(), 1, anchored_information=0.812)
    table = results_table(report)
    assert "anchored_information" in table
    assert lines_with(table, "adapted")[0][-1] == "0.812"
    assert lines_with(table, "source-only")[0][-1] == "-"


def test_a_table_names_external_knowledge():
    facts = ExternalFacts("SAM 3 prompted with class names")
    line = "EXTERNAL knowledge: SAM 3 prompted with class names voted on the pseudo-labels"
    assert line in results_table(adapt_report(external_knowledge=facts))
    assert line in results_table(tune_report(external_knowledge=facts))
    assert "EXTERNAL" not in results_table(adapt_report())


def test_a_report_without_labels_says_that_its_scores_are_label_free():
    table = results_table(unlabelled_report())
    assert "no labels given: all scores below are label-free" in table
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
    source, adapted = adapt_report().rows
    more = [replace(adapted, name=f"another method {k}") for k in range(9)]
    lines = per_class_table(adapt_report(rows=(source, *more, adapted))).splitlines()
    assert max(map(len, lines)) <= MAX_WIDTH
    assert "source-only" in lines[0]
    assert "adapted" in lines[0]
    omitted = int(lines[-1].split()[2])  # "... and N more rows"
    assert omitted == 9 - lines[0].count("another")


def test_an_empty_report_has_tables():
    assert results_table(RunRecord()).startswith("Report")
    assert per_class_table(RunRecord()) == "no IoU per class: no labels were given"


def test_all_label_free_scores_of_trials_and_their_ranks_are_shown():
    def trial(number, miou, agreement, collapsed=False):
        return TrialRow(
            f"trial {number}",
            status="finished",
            miou=miou,
            agreement=agreement,
            mask_information=1 - agreement,
            predicted_classes=2.0,
            collapsed=collapsed,
        )

    trials = (trial(1, 30, 0.5), trial(2, 40, 0.7), trial(3, 10, 0.2), trial(4, 1, 0.1, True))
    text = results_table(RunRecord(trials=trials, best_trial=1, score_name="agreement"))
    lines = [line.split() for line in text.splitlines()]
    assert ["mask", "inf.", "agreement", "classes"] in lines
    assert ["trial", "2", "0.300", "0.700", "2"] in lines
    assert ["Spearman,", "mIoU", "-1.00", "+1.00", "-"] in lines
    statuses = [line[-1] for line in lines if line[:2] == ["trial", "4"]]
    assert statuses[0] == "collapsed"
    assert max(map(len, text.splitlines())) <= 100


def test_a_note_on_the_labels_is_printed():
    labels = replace(adapt_report().labels, note="truck has no counterpart")
    assert (
        "WARNING: truck has no counterpart"
        in results_table(adapt_report(labels=labels)).splitlines()
    )
    assert "WARNING" not in results_table(adapt_report())
