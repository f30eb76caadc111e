"""Designs, search and gradients on the page about what masks know are those of the records."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from mask_news import OTHER_REGIONS, PAGE, PAIRS, last_steps, page_text, short, spread
from result_pages import rows_of, table

DESIGNS = {
    "1 neighbours by geometry, mean": "neighbours",
    "2 neighbours in a learned space, mean": "neighbours_learned",
    "3 rule-out by mask": "rule_out",
    "rule-out by pixel (control)": "rule_out_pixel",
    "4 contrast of outputs": "output",
    "5 contrast at boundaries": "rings",
}
RANGES = {
    "temperature": ("0.03", "0.7"),
    "contrast_weight": ("0.01", "2"),
    "ema_momentum": ("0.99", "0.9999"),
}


def design_ends(pair: str, key: str) -> float | None:
    """Return the mIoU of a design at seed 0, with the regions of its pair; None where it was not run."""
    is_drawn = pair == "streets"
    if key == "vote":
        key = "vote_small_sam" if is_drawn else "pooled_vote"
    else:
        key += "_small_sam" if is_drawn else "_felzenszwalb"
    return last_steps("news", pair, key).get(0)


def test_designs_end_where_the_records_say():
    (names, *rows) = table(PAGE, "Six designs")
    votes = [design_ends(pair, "vote") for pair in PAIRS.values()]
    assert names == ["vote", *(f"{vote:.1f}" for vote in votes)]
    assert [row[0] for row in rows] == list(DESIGNS)
    for name, *cells in rows:
        for cell, pair, vote in zip(cells, PAIRS.values(), votes, strict=True):
            miou = design_ends(pair, DESIGNS[name])
            assert miou is not None
            assert vote is not None
            assert cell == f"{miou:.1f} ({miou - vote:+.1f})"


def test_what_the_page_says_of_designs_is_what_its_table_says():
    changes = {
        (name, key): (design_ends(pair, key) or 0.0) - (design_ends(pair, "vote") or 0.0)
        for name, pair in PAIRS.items()
        for key in DESIGNS.values()
    }
    text, camvid = page_text(), "CamVid, day to dusk"
    by_mask, by_pixel = (
        [changes[name, key] for name in ("drawn streets", "ESPNet, dusk")]
        for key in ("rule_out", "rule_out_pixel")
    )
    assert f"gains {short(by_mask[0])} points on drawn streets and {short(by_mask[1])} on" in text
    assert f"by pixel loses {short(-by_pixel[0])} and {-by_pixel[1]:.1f}." in text
    assert f"day to dusk, it loses {-changes[camvid, 'rule_out']:.1f}." in text
    assert sum(changes[name, "neighbours"] < 0 for name in PAIRS) == 3
    others = {key: change for key, change in changes.items() if key[1] in ("output", "rings")}
    assert f"which loses {-others.pop(('ESPNet, dusk', 'output')):.1f}." in text
    assert max(map(abs, others.values())) <= 0.55
    vote, both = (
        last_steps("news", "streets", f"{key}_small_sam") for key in ("vote", "agreeing_rule_out")
    )
    source = last_steps("news", "streets", "source_only")[0]
    reached = statistics.fmean(both.values())
    above = [reached - miou for miou in (source, statistics.fmean(vote.values()))]
    sentence = f"reach {spread(both)} on drawn streets, {above[0]:.1f} above the source model and"
    assert f"{sentence} {above[1]:.1f} above the vote (seeds 0, 1, 2)" in text
    assert list(both) == [0, 1, 2]
    ends = [last_steps("news", PAIRS[camvid], key) for key in ("pooled_vote", "full_felzenszwalb")]
    source = last_steps("news", PAIRS[camvid], "source_only")[0]
    gains = [f"{statistics.fmean(end.values()) - source:.1f}" for end in ends]
    assert all(list(end) == [0, 1, 2] for end in ends)
    assert f"the vote ends {gains[0]} points above this source model" in text
    assert f"with the contrast {gains[1]} (seeds 0, 1, 2)" in text


def changes_at_ends(table_name: str, pair: str, keys: Sequence[str], middle: str) -> str:
    """Return the changes of mIoU at both ends of a range, seed 0, as a cell of the page writes them."""
    full = last_steps(table_name, pair, middle)[0]
    at_ends = [last_steps(table_name, pair, key).get(0) for key in keys]
    return ", ".join("not run" if miou is None else f"{miou - full:+.1f}" for miou in at_ends)


def test_ends_of_the_search_are_those_of_the_records():
    *rows, quick = table(PAGE, "What a search can gain")
    expected = [(f"`{key}`", key, ends, "full_felzenszwalb", "") for key, ends in RANGES.items()]
    ends = RANGES["temperature"]
    heavy = ("`temperature`, weight 2", "temperature", ends, "contrast_weight_2", "_heavy")
    expected.insert(1, heavy)
    camvid, *others = list(PAIRS.values())[1:]
    for (setting, _, low, high, *cells), (title, key, ends, middle, ending) in zip(
        rows, expected, strict=True
    ):
        assert setting == title
        assert (float(low), float(high)) == tuple(map(float, ends))
        keys = [f"{key}_{end}{ending}" for end in ends]
        pairs = others if key == "ema_momentum" else (camvid, *others)
        changes = [changes_at_ends("ranges", pair, keys, middle) for pair in pairs]
        assert cells == [*[""] * (3 - len(pairs)), *changes]
    keys = ["ema_momentum_0.9", "ema_momentum_0.999"]
    changes = changes_at_ends("quick_ranges", camvid, keys, "full_felzenszwalb")
    assert quick[2:] == [".9", ".999", changes, "", ""]


def test_gradients_of_extra_losses_are_those_of_the_records():
    records = ["pair_news_streets_small_sam", *list(OTHER_REGIONS.values())[1:]]
    columns = [[row for row in rows_of(record) if "loss" in row] for record in records]
    rows = table(PAGE, "Gradients")
    for (name, *cells), *measured in zip(rows, *columns, strict=True):
        assert {row["loss"] for row in measured} == {name}
        assert cells == [
            f"{row['cosine']:.2f} ± {row['cosine_deviation']:.2f}, {row['norm']:.2f}"
            for row in measured
        ]
    drawn, *photographs = ([row for row in c if row["loss"][:2] == "L_"] for c in columns)
    photographed = [row for column in photographs for row in column]
    assert max(row["norm"] for row in (*drawn, *photographed)) < 0.105
    text = page_text()
    for rows_of_pairs in (drawn, photographed):
        low, high = (
            f"{find(row['cosine'] for row in rows_of_pairs):.2f}".removeprefix("0")
            for find in (min, max)
        )
        assert f"({low} to {high})" in text
