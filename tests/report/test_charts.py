"""Charts: valid inline SVG that follows the page's colours and stays honest about gaps."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import matplotlib
import pytest
from report_samples import CLASSES, adapt_report, change_row, tune_report, unlabelled_report

from sfss_ray.report.charts import (
    MAX_POINTS,
    class_chart,
    curve_charts,
    row_colours,
    trial_charts,
)
from sfss_ray.report.report_record import ClassSetFacts, Curve, RunRecord, TrialRow


def texts(svg):
    """Texts of an inline <svg>, top to bottom as drawn; the parse proves that it is well formed."""
    named = svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1)
    return [element.text for element in ElementTree.fromstring(named).iter("text")]


def test_class_chart_sorts_by_change_and_names_absent_classes():
    chart = class_chart(adapt_report())
    assert chart is not None
    assert chart.note.endswith("train")
    svg_texts = texts(chart.svg)
    assert [text for text in svg_texts if text in CLASSES] == ["road", "car"]
    assert [text for text in svg_texts if text and text[0] in "+-"] == ["+30.4", "-4.2"]
    assert {"source-only", "adapted"} <= set(svg_texts)


def test_class_chart_in_class_order():
    report = change_row(adapt_report(), 1, per_class=(40.0, 60.0, None))
    by_change, by_class = (class_chart(report, order=order) for order in ("change", "class"))
    assert by_change is not None
    assert by_class is not None
    assert [t for t in texts(by_change.svg) if t in CLASSES] == ["car", "road"]
    assert [t for t in texts(by_class.svg) if t in CLASSES] == ["road", "car"]


@pytest.mark.parametrize("count", [1, 3, 5])
def test_class_chart_takes_any_number_of_rows(count):
    row = adapt_report().rows[0]
    rows = tuple(replace(row, name=f"row {k}") for k in range(count))
    chart = class_chart(adapt_report(rows=rows))
    assert chart is not None
    assert {f"row {k}" for k in range(count)} <= set(texts(chart.svg))


def test_charts_without_data_are_left_out():
    assert class_chart(unlabelled_report()) is None
    assert class_chart(RunRecord()) is None
    assert curve_charts(RunRecord(curves=(Curve("adapted"),))) == []
    assert trial_charts(RunRecord(trials=(TrialRow("trial 1"),))) == []


def test_curves_skip_quantities_that_are_missing_or_nan():
    assert [chart.title for chart in curve_charts(adapt_report())] == [
        "total loss",
        "learning rate",
    ]


def test_a_number_of_workers_that_changed_has_a_chart():
    points = ({"step": 10, "workers": 2}, {"step": 20, "workers": 1})
    (chart,) = curve_charts(RunRecord(curves=(Curve("adapted", points),)))
    assert chart.title == "training workers"


def test_long_curves_stay_small():
    points = tuple({"step": step, "loss": (step * 7919 % 100) / 100} for step in range(20_000))
    chart = curve_charts(RunRecord(curves=(Curve("adapted", points),)))[0]
    longest = max(path.count("L ") for path in re.findall(r'd="([^"]*)"', chart.svg))
    assert longest < MAX_POINTS


def test_trials_show_each_knob_and_count_the_missing():
    charts = trial_charts(tune_report())
    assert [chart.title.split()[-1] for chart in charts[:3]] == [
        "temperature",
        "contrast_weight",
        "ema_momentum",
    ]
    assert charts[0].note == "not drawn because they have no score: 1 of 5 trials"
    assert not any("mathdefault" in text for chart in charts for text in texts(chart.svg) if text)


def test_one_trial_and_a_knob_of_zero_can_be_drawn():
    first = tune_report().trials[0]
    zero = {"train.loss.contrast_weight": 0.0, "train.ema_momentum": 1.0}
    trial = replace(first, values=first.values | zero)
    assert len(trial_charts(tune_report(trials=(trial,), best_trial=0))) == 4


def test_svg_is_inline_and_takes_the_colours_of_the_page():
    charts = [
        class_chart(adapt_report()),
        *curve_charts(adapt_report()),
        *trial_charts(tune_report()),
    ]
    for chart in charts:
        assert chart is not None
        assert chart.svg.startswith("<svg ")
        assert "http" not in chart.svg
        assert "<style" not in chart.svg
        assert "currentColor" in chart.svg
        assert "#01020" not in chart.svg


def test_names_are_escaped_and_never_parsed_as_mathematics():
    report = adapt_report(class_set=ClassSetFacts("x", ("<script>", "a$b$c", "道路")))
    for index in range(2):
        report = change_row(report, index, per_class=(1.0, 2.0, 3.0))
    chart = class_chart(report)
    assert chart is not None
    assert "<script" not in chart.svg
    assert {"<script>", "a$b$c", "道路"} <= set(texts(chart.svg))


def test_a_row_has_one_colour_and_no_two_share_it():
    names = ["source-only", "adapted", "one", "two", "self-training"]
    colours = row_colours(names)
    assert len(set(colours.values())) == 5
    assert row_colours(["adapted"])["adapted"] == colours["adapted"]


def test_matplotlib_settings_are_restored():
    before = dict(matplotlib.rcParams)
    class_chart(adapt_report())
    assert dict(matplotlib.rcParams) == before
