"""The page about what masks know: its pairs, their names in records, and how it writes numbers."""

from __future__ import annotations

from result_pages import FOREIGN, PAGES, mean_and_spread, rows_of

PAGE = "mask-news.md"
DUSK = "cityscapes2camvid_dusk_"
PAIRS = {
    "drawn streets": "streets",
    "CamVid, day to dusk": "camvid_day2dusk",
    "ESPNetv2 1.0, dusk": DUSK + FOREIGN["ESPNetv2, width 1.0"],
    "ESPNet, dusk": DUSK + FOREIGN["ESPNet"],
}
"""Name on the page -> in file names of records."""
LATER = {
    "ESPNetv2 2.0, dusk": DUSK + FOREIGN["ESPNetv2, width 2.0"],
    "ESPNetv2 1.0, day": "cityscapes2camvid_day_" + FOREIGN["ESPNetv2, width 1.0"],
}
"""Pairs that were run after the choice, with the design chosen and the vote alone."""
OTHER_REGIONS = {"drawn streets, true regions": "pair_news_streets_ground_truth"} | {
    f"{name}, Felzenszwalb": f"pair_news_{pair}_felzenszwalb"
    for name, pair in PAIRS.items()
    if pair != "streets"
}


def page_text() -> str:
    return " ".join((PAGES / PAGE).read_text().split())


def short(number: float) -> str:
    """Return a number with one digit as the page writes it: without the 0 before the point."""
    return f"{number:.1f}".removeprefix("0").replace("-0.", "-.")


def last_steps(table_name: str, pair: str, key: str) -> dict[int, float]:
    """Return the mIoU of the student at the last step by seed, empty where none was run."""
    ending = "_100_steps" if pair.startswith("cityscapes2camvid_") else ""
    for row in rows_of(f"{table_name}_{pair}{ending}"):
        if row["key"] == key:
            return {entry["seed"]: entry["student_last"] for entry in row["seeds"]}
    return {}


def gains_over(vote: dict[int, float], ours: dict[int, float]) -> str:
    return ", ".join(f"{ours[seed] - vote[seed]:+.1f}" for seed in sorted(ours)) or "not run"


def spread(values: dict[int, float]) -> str:
    if not values:
        return "not run"
    return mean_and_spread(list(values.values())) if len(values) > 1 else f"{values[0]:.1f}"
