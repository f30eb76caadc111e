"""Tables of the pages of results, and the records beside the studies."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "results"
RECORDS = ROOT / "experiments" / "studies" / "results"
FOREIGN = {
    "ESPNetv2, width 1.0": "espnetv2_s_1_0_city_1024x512",
    "ESPNetv2, width 2.0": "espnetv2_s_2_0_city_1024x512",
    "ESPNet": "espnet_p_2_q_8",
}
"""Name of a model on the page -> in file names of records."""


def table(page: str, section: str, number: int = 0) -> list[list[str]]:
    """Return the cells of a table without its header: the number-th one below a heading of a page."""
    text = (PAGES / page).read_text()
    (below,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.M)
    found = re.findall(r"(?:^\|.*\|\n)+", below, re.M)[number]
    rows = [
        [cell.strip().strip("*") for cell in line[1:-1].split("|")] for line in found.splitlines()
    ]
    assert set("".join(rows[1])) == {"-"}
    return rows[2:]


def rows_of(record: str) -> list[dict]:
    return json.loads((RECORDS / f"{record}.json").read_text())["rows"]


def mean_and_spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"
