"""The figures on the page of label-free scores are those of the records beside the studies."""

from __future__ import annotations

import json
from typing import Any

import pytest
from result_pages import FOREIGN, PAGES, RECORDS, ROOT, table

PAGE = "label-free-scores.md"
DUSK, DAY = "cityscapes2camvid_dusk_", "cityscapes2camvid_day_"
PAIRS = {
    "streets": "streets",
    "CamVid day to dusk": "camvid_day2dusk",
    "ESPNetv2 width 1.0, dusk": DUSK + FOREIGN["ESPNetv2, width 1.0"],
    "ESPNet, dusk": DUSK + FOREIGN["ESPNet"],
}
LATER = {
    "ESPNetv2 width 2.0, dusk": DUSK + FOREIGN["ESPNetv2, width 2.0"],
    "ESPNetv2 width 2.0, day": DAY + FOREIGN["ESPNetv2, width 2.0"],
    "ESPNet, day": DAY + FOREIGN["ESPNet"],
    "ESPNetv2 width 1.0, day": DAY + FOREIGN["ESPNetv2, width 1.0"],
}
"""Pairs that were run after the first choice of a score."""
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
} | {
    f"information x consistency x {name}^({power})": f"information x consistency x {key}^({power})"
    for name, key in (
        ("agreement with the views", "views_of_both"),
        ("kept anchors", "kept_anchors"),
    )
    for power in ("1/4", "1/2", "1")
}
"""Name on the page -> in the records, where they differ."""


def record(pair: str) -> dict[str, Any]:
    return json.loads((RECORDS / f"score_quality_{pair}.json").read_text())


def judged(pair: str, name: str) -> dict[str, Any]:
    name = name.strip("`")
    (score,) = (s for s in record(pair)["scores"] if s["score"] == SCORES.get(name, name))
    return score


def numbers(cell: str) -> list[float]:
    return [float(word.strip("*! ")) for word in cell.split(",")]


def assert_ranks(cell: str, pair: str, name: str) -> None:
    score = judged(pair, name)
    spearman, sound, picked = numbers(cell)
    # Records have three digits, and pages two.
    assert spearman == pytest.approx(score["spearman"], abs=0.0051)
    assert sound == pytest.approx(score["spearman_sound"], abs=0.0051)
    assert picked == pytest.approx(score["pick_miou"], abs=0.051)
    is_harm = score["pick_miou"] < record(pair)["source"]["miou"]
    assert cell.endswith("!") == is_harm, (pair, name)


@pytest.mark.parametrize(("number", "pairs"), [(0, PAIRS), (1, LATER)])
def test_ranks_and_picks_are_those_of_the_records(number, pairs):
    (source, *rows) = table(PAGE, "Ranks and picks", number)
    assert {*SCORES} < {name for name, *_ in rows}
    for cell, pair in zip(source[1:], pairs.values(), strict=True):
        best = max(row["miou"] for row in record(pair)["rows"])
        expected = [record(pair)["source"]["miou"], best]
        assert numbers(cell) == pytest.approx(expected, abs=0.051)
    for name, *cells in rows:
        for cell, pair in zip(cells, pairs.values(), strict=True):
            assert_ranks(cell, pair, name)


def test_the_default_ranks_well_and_never_picks_below_the_source_model():
    scores = {name: judged(pair, DEFAULT) for name, pair in (PAIRS | LATER).items()}
    assert all(score["spearman"] >= 0.7 for score in scores.values())
    weak = {name for name, score in scores.items() if score["spearman_sound"] < 0.7}
    assert weak == {"ESPNetv2 width 2.0, day", "ESPNet, day"}
    for name, pair in (PAIRS | LATER).items():
        assert scores[name]["pick_miou"] > record(pair)["source"]["miou"]


def test_the_default_is_the_product_that_the_page_names():
    for pair in (PAIRS | LATER).values():
        default = judged(pair, DEFAULT)
        product = judged(pair, "information x consistency x views_of_both^(1/4)")
        assert default["pick"] == product["pick"]
        # The package compares views on a grid, over the classes that the source model predicts.
        assert default["spearman"] == pytest.approx(product["spearman"], abs=0.03)


def verdicts(pair: str, name: str) -> list[int]:
    (row,) = (v for v in record(pair)["verdicts"] if v["score"] == name.strip("`"))
    return [row["right"], row["silent"], row["wrong"]]


def test_verdicts_are_those_of_the_records():
    for name, *cells, in_all in table(PAGE, "Verdicts"):
        counts = [verdicts(pair, name) for pair in (PAIRS | LATER).values()]
        assert [list(map(int, numbers(cell))) for cell in cells] == counts
        assert list(map(int, numbers(in_all))) == [
            sum(column) for column in zip(*counts, strict=True)
        ]


def test_the_conclusion_names_the_range_of_its_ranks():
    pairs = (PAIRS | LATER).values()
    text = " ".join((PAGES / PAGE).read_text().split())
    spans = []
    for key in ("spearman", "spearman_sound"):
        ranks = [f"{judged(pair, DEFAULT)[key]:.2f}".removeprefix("0") for pair in pairs]
        spans.append(f"{min(ranks)} to {max(ranks)}")
    assert f"(Spearman {spans[0]} over all trials, {spans[1]} over those" in text
    wrong = sum(verdicts(pair, DEFAULT)[2] for pair in pairs)
    total = sum(sum(verdicts(pair, DEFAULT)) for pair in pairs)
    assert f"wrong on {wrong} of {total} students" in text


def test_the_guide_shows_the_ranks_of_the_page():
    guide = (ROOT / "docs" / "tuning-without-labels.md").read_text()
    for name in (DEFAULT, "balanced_mask_information", "mask_information"):
        (line,) = (line for line in guide.splitlines() if line.startswith(f"| `{name}` |"))
        for cell, pair in zip(line.split("|")[2:-1], PAIRS.values(), strict=True):
            ranked, picked = (part.strip(" *") for part in cell.replace("picks", "").split(","))
            score = judged(pair, name)
            assert float(ranked) == pytest.approx(score["spearman"], abs=0.0051)
            assert float(picked) == pytest.approx(score["pick_miou"], abs=0.051)
