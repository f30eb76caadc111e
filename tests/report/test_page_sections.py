"""Cards, rows, classes and badges of the page, against the numbers of a sample."""

from dataclasses import replace

import pytest
from report_samples import adapt_report, change_row, tune_report, unlabelled_report

from sfss_ray.report.page_sections import (
    METRICS,
    Badge,
    VerdictBanner,
    badges,
    breakable,
    class_lines,
    class_summary,
    measured_metrics,
    row_lines,
    score_cards,
    show_value,
    verdict_banner,
)
from sfss_ray.report.report_record import (
    IMPROVED,
    NO_EVIDENCE,
    WORSE,
    ExternalFacts,
    RunRecord,
    ScoreRow,
    Verdict,
)


def test_cards_compare_source_only_with_the_answer():
    card = score_cards(adapt_report())[0]
    assert (card.metric.title, card.before, card.after) == ("mIoU", "38.1", "51.2")
    assert (card.change.text, card.change.verdict) == ("+13.1", "better")


def test_only_scores_that_a_row_has_are_shown():
    assert [m.name for m in measured_metrics(adapt_report())] == [
        "miou",
        "pixel_accuracy",
        "mask_information",
    ]
    assert [m.name for m in measured_metrics(unlabelled_report())] == ["mask_information"]
    assert measured_metrics(RunRecord()) == []


def test_a_change_without_labels_is_neutral():
    card = score_cards(unlabelled_report())[0]
    assert (card.change.text, card.change.verdict) == ("+1.000", "neutral")


def test_rows_have_no_change_from_themselves():
    rows = row_lines(change_row(adapt_report(), 1, miou=30.0))
    assert [row.name for row in rows] == ["source-only", "adapted"]
    assert rows[0].cells[0][0] == "38.1"
    assert rows[0].cells[0][1].text == ""
    assert (rows[1].cells[0][1].text, rows[1].cells[0][1].verdict) == ("-8.1", "worse")


def test_class_lines_hold_every_row_and_the_change():
    road, car, train = class_lines(adapt_report())
    assert (road.name, road.ious, road.change.text) == ("road", [50.0, 80.4], "+30.4")
    assert (car.change.text, car.change.verdict) == ("-4.2", "worse")
    assert (train.ious, train.change.text, train.change.verdict) == ([None, None], "-", "neutral")
    assert class_lines(unlabelled_report()) == []


def test_a_change_that_rounds_to_zero_is_no_improvement():
    report = change_row(adapt_report(), 1, per_class=(50.04, 26.3, None))
    assert class_summary(report) == "1 of 2 classes improved, most: car +0.1, least: road 0.0"
    assert class_summary(unlabelled_report()) == ""


def test_badges_warn_of_oracles_and_of_regions_that_are_not_sam():
    assert Badge("masks: small_sam") in badges(adapt_report())
    regions = replace(adapt_report().regions, source="felzenszwalb")
    warned = badges(tune_report(regions=regions, oracle=True, seeds=(0, 1)))
    assert warned[0] == Badge("oracle: chosen with target labels", is_warning=True)
    assert Badge("masks: felzenszwalb (not SAM)", is_warning=True) in warned
    assert Badge("seeds: 0, 1") in warned
    assert badges(RunRecord(rows=(ScoreRow("a"),))) == []


def test_a_badge_warns_of_external_knowledge():
    facts = ExternalFacts("SAM 3 prompted with class names")
    (first, *_) = badges(adapt_report(external_knowledge=facts))
    text = "external knowledge: SAM 3 prompted with class names voted on the pseudo-labels"
    assert first == Badge(text, is_warning=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((512, 1024), "512, 1024"),
        (0.1 + 0.2, "0.3"),
        ("auto", "auto"),
        (True, "true"),
        (None, "null"),
    ],
)
def test_values_are_written_for_people(value, text):
    assert show_value(value) == text


@pytest.mark.parametrize(
    ("word", "title", "kind"),
    [
        (IMPROVED, "Improved", "better"),
        (NO_EVIDENCE, "No evidence of improvement", "neutral"),
        (WORSE, "Worse: keep the source model", "worse"),
    ],
)
def test_the_banner_states_the_verdict(word, title, kind):
    banner = verdict_banner(adapt_report(verdict=Verdict(word, "It is so.")))
    assert banner == VerdictBanner(title, "It is so.", kind)
    assert verdict_banner(adapt_report()) is None


def test_every_score_has_a_direction():
    """Of the scores only entropy falls when a model becomes better."""
    assert [metric.name for metric in METRICS if metric.better == "lower"] == ["entropy"]


def test_long_names_may_break_after_underscores():
    assert breakable("mask_information") == "mask_\u200binformation"
    assert breakable("mIoU") == "mIoU"
