"""The figures on the page of label-free scores are those of the records beside the studies."""

from __future__ import annotations

import json
from typing import Any

import pytest
from result_pages import FOREIGN, PAGES, RECORDS, table

PAGE = "label-free-scores.md"
DUSK = "cityscapes2camvid_dusk_"
PAIRS = {
    "streets": "streets",
    "CamVid day to dusk": "camvid_day2dusk",
    "ESPNetv2 width 1.0, dusk": DUSK + FOREIGN["ESPNetv2, width 1.0"],
    "ESPNet, dusk": DUSK + FOREIGN["ESPNet"],
}
LATER = DUSK + FOREIGN["ESPNetv2, width 2.0"]
"""The pair that was scored after the choice."""
DEFAULT = "anchored_information"
SCORES = {
    "agreement with the teacher": "agreement (with the teacher)",
    "consistency over views": "view_consistency",
    "the same over the source model's classes": "consistency_over_source_classes",
    "steadiness under noise, blur and darkening": "steadiness",
    "agreement with the source model": "source_agreement",
    "agreement with the source model's views": "views_of_both",
    "kept anchors": "kept_anchors",
    "H(mean p) - mean H(p)": "information_maximum",
    "agreement with the mean of all trials": "committee",
    "information x consistency x kept anchors^(1/2)": "information x consistency x kept_anchors^(1/2)",
    "information x consistency x kept anchors": "information x consistency x kept_anchors",
}
"""Name on the page -> in the records, where they differ."""


def record(pair: str) -> dict[str, Any]:
    return json.loads((RECORDS / f"score_quality_{pair}.json").read_text())


def judged(pair: str, name: str) -> dict[str, Any]:
    name = name.strip("`")
    (score,) = (s for s in record(pair)["scores"] if s["score"] == SCORES.get(name, name))
    return score


def numbers(cell: str) -> list[float]:
    return [float(word.strip("* ")) for word in cell.split(",")]


def assert_ranks(cells: list[float], score: dict[str, Any]) -> None:
    spearman, sound, picked = cells
    # Records have three digits, and pages two.
    assert spearman == pytest.approx(score["spearman"], abs=0.0051)
    assert sound == pytest.approx(score["spearman_sound"], abs=0.0051)
    assert picked == pytest.approx(score["pick_miou"], abs=0.051)


def test_ranks_and_picks_are_those_of_the_records():
    (source, *rows) = table(PAGE, "Ranks and picks")
    for cell, pair in zip(source[1:], PAIRS.values(), strict=True):
        best = max(row["miou"] for row in record(pair)["rows"])
        expected = [record(pair)["source"]["miou"], best]
        assert numbers(cell) == pytest.approx(expected, abs=0.051)
    for name, *cells in rows:
        for cell, pair in zip(cells, PAIRS.values(), strict=True):
            assert_ranks(numbers(cell), judged(pair, name))


def test_the_default_ranks_well_and_never_picks_below_the_source_model():
    for pair in (*PAIRS.values(), LATER):
        score = judged(pair, DEFAULT)
        assert score["spearman"] >= 0.7
        assert score["spearman_sound"] >= 0.7
        assert score["pick_miou"] > record(pair)["source"]["miou"]


def verdicts(pair: str, name: str) -> list[int]:
    (row,) = (v for v in record(pair)["verdicts"] if v["score"] == name.strip("`"))
    return [row["right"], row["silent"], row["wrong"]]


def test_verdicts_are_those_of_the_records():
    for name, *cells, in_all in table(PAGE, "Verdicts"):
        counts = [verdicts(pair, name) for pair in PAIRS.values()]
        assert [list(map(int, numbers(cell))) for cell in cells] == counts
        assert list(map(int, numbers(in_all))) == [
            sum(column) for column in zip(*counts, strict=True)
        ]


def test_the_fifth_pair_is_as_its_record_says():
    for name, spearman, sound, picked, counts in table(PAGE, "How it was chosen"):
        assert_ranks([float(spearman), float(sound), float(picked)], judged(LATER, name))
        assert list(map(int, numbers(counts))) == verdicts(LATER, name)


def test_the_conclusion_names_the_range_of_its_ranks():
    scores = [judged(pair, DEFAULT) for pair in PAIRS.values()]
    text = " ".join((PAGES / PAGE).read_text().split())
    spans = []
    for key in ("spearman", "spearman_sound"):
        ranks = [f"{score[key]:.2f}".removeprefix("0") for score in scores]
        spans.append(f"{min(ranks)} to {max(ranks)}")
    assert f"(Spearman {spans[0]} over all trials, {spans[1]} over those" in text
    wrong = sum(verdicts(pair, DEFAULT)[2] for pair in PAIRS.values())
    total = sum(sum(verdicts(pair, DEFAULT)) for pair in PAIRS.values())
    assert f"wrong on {wrong} of {total} students" in text
