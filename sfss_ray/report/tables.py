"""Numbers of a report as words: how a value, a change and a missing one are written, and the plain
text tables for the terminal.

`report` is the dict that becomes report.json; every part of it may be missing. The HTML page takes
its comparisons from here too, so that terminal and page never disagree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MISSING = "-"
MAX_WIDTH = 100
KNOBS = ("temperature", "contrast_weight", "ema_momentum")
LABEL_FREE = {
    "mask_information": "mask inf.",
    "balanced_mask_information": "balanced inf.",
    "agreement": "agreement",
    "entropy": "entropy",
    "neighbourhood_density": "density",
    "predicted_classes": "classes",
}


def is_number(value: Any) -> bool:
    """True for a finite int or float (numpy's too); False for None, NaN, Inf, bool and text."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        return False
    return math.isfinite(float(value))


def number(value: Any, digits: int = 1) -> str:
    """A value with fixed decimals, or "-" when there is none."""
    return f"{float(value):.{digits}f}" if is_number(value) else MISSING


def knob(value: Any) -> str:
    """A hyperparameter with four significant digits; a momentum keeps the digits of its gap to 1."""
    if not is_number(value):
        return MISSING
    if 0.9 < value < 1:
        decimals = max(5, 1 - math.floor(math.log10(1 - value) + 1e-6))
        return f"{value:.{decimals}f}"
    return f"{value:.4g}"


def change(before: Any, after: Any) -> float | None:
    """after - before, or None when one of them is missing."""
    return float(after) - float(before) if is_number(before) and is_number(after) else None


def signed(value: float | None, digits: int = 1) -> str:
    """A change with its sign, "+13.1", "-0.4", "0.0"; "-" when there is none."""
    if value is None:
        return MISSING
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def answer_name(names: Sequence[str]) -> str | None:
    """The row a report is about: "adapted" where there is one, else the last that is no baseline."""
    if "adapted" in names[1:]:
        return "adapted"
    return names[-1] if len(names) > 1 else None


def baseline_and_answer(report: Mapping[str, Any]) -> tuple[dict | None, dict | None]:
    """The first row (source-only) and the row the report is about; None for one that is missing."""
    rows = report.get("rows") or []
    name = answer_name([row["name"] for row in rows])
    answer = next((row for row in rows[1:] if row["name"] == name), None)
    return (rows[0] if rows else None), answer


def class_scores(row: Mapping[str, Any] | None, num_classes: int) -> list[float | None]:
    """IoU of each class in percent; None for a class that is absent or was not scored."""
    given = list((row or {}).get("per_class") or [])[:num_classes]
    values = [float(value) if is_number(value) else None for value in given]
    return values + [None] * (num_classes - len(values))


def class_changes(report: Mapping[str, Any]) -> list[float | None]:
    """Change of each class's IoU from source-only to the answer; None where one is missing."""
    classes = (report.get("class_set") or {}).get("classes") or []
    before, after = (class_scores(row, len(classes)) for row in baseline_and_answer(report))
    return [change(b, a) for b, a in zip(before, after, strict=True)]


def best_trial(report: Mapping[str, Any]) -> dict | None:
    """The trial that the search chose, or None when it names none."""
    trials, index = report.get("trials") or [], report.get("best_trial")
    return trials[index] if isinstance(index, int) and 0 <= index < len(trials) else None


def is_oracle(report: Mapping[str, Any]) -> bool:
    """True when target labels took part in choosing, which source-free adaptation does not allow."""
    used_for = str((report.get("labels") or {}).get("used_for", ""))
    return bool(report.get("oracle")) or "oracle" in used_for


def rank_correlation(
    trials: Sequence[Mapping[str, Any]], score: str = "mask_information"
) -> tuple[float, int] | None:
    """Spearman correlation of a score with mIoU over finished trials, and their number.

    None with fewer than three such trials, or when one of the two is the same in all of them.
    """
    pairs = [
        (trial.get(score), trial.get("miou"))
        for trial in trials
        if trial.get("status") == "finished"
    ]
    values = np.array([p for p in pairs if is_number(p[0]) and is_number(p[1])], dtype=float)
    if len(values) < 3 or (np.ptp(values, axis=0) == 0).any():
        return None
    ranks = [_mean_ranks(column) for column in values.T]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1]), len(values)


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value; equal values share the mean of their ranks."""
    below = (values[None] < values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1)
    return below + (equal - 1) / 2


def results_table(report: Mapping[str, Any]) -> str:
    """The result as aligned text, source-only first, at most 100 columns wide.

    With trials: a line per trial (knobs, mIoU, label-free score, status), then the best one.
    Without: a line per row (mIoU, its change, pixel accuracy, mask_information).
    """
    body = _trial_lines(report) if report.get("trials") else _row_lines(report)
    return "\n".join([*_heading(report), "", *body])


def per_class_table(report: Mapping[str, Any]) -> str:
    """IoU of each class in percent, a column per row of the report, and what changed.

    Columns that would pass 100 characters are left out and counted in a last line; a report
    without labels gives one sentence.
    """
    classes = (report.get("class_set") or {}).get("classes") or []
    _, answer = baseline_and_answer(report)
    scored = [row for row in report.get("rows") or [] if row.get("per_class")]
    if not classes or not scored:
        return "no IoU per class: no labels were given"
    shown = _rows_that_fit(scored, answer, max(len(_short(name)) for name in classes))
    columns = [class_scores(row, len(classes)) for row in shown]
    changes = class_changes(report)
    lines = [["IoU %", *(_short(row["name"], 16) for row in shown), "change"]]
    for index, name in enumerate(classes):
        values = [number(column[index]) for column in columns]
        lines.append([_short(name), *values, signed(changes[index])])
    left_out = len(scored) - len(shown)
    notes = [f"... and {left_out} more rows in report.json"] if left_out else []
    return "\n".join([*_aligned(lines, left_columns={0}), *notes])


def _heading(report: Mapping[str, Any]) -> list[str]:
    named = report.get("class_set") or {}
    labels = report.get("labels") or {}
    seeds = report.get("seeds") or [report.get("seed", MISSING)]
    facts = [
        f"network {report.get('network_scored', MISSING)}",
        f"step {report.get('step_scored', MISSING)}",
        f"seed {', '.join(str(seed) for seed in seeds)}",
        f"classes {named.get('name', MISSING)}",
    ]
    lines = [str(report.get("title", "Report")), ", ".join(facts)]
    if not labels.get("given"):
        lines.append("no labels were given: the scores below need none")
    if is_oracle(report):
        lines.append("ORACLE: target labels were used for choosing")
    return lines


def _row_lines(report: Mapping[str, Any]) -> list[str]:
    rows = report.get("rows") or []
    baseline, _ = baseline_and_answer(report)
    lines = [["", "mIoU %", "change", "pixel accuracy %", "mask_information"]]
    for row in rows:
        gain = None if row is baseline else change((baseline or {}).get("miou"), row.get("miou"))
        measured = [number(row.get("miou")), signed(gain), number(row.get("pixel_accuracy"))]
        lines.append([_short(row["name"], 40), *measured, number(row.get("mask_information"), 3)])
    return _aligned(lines, left_columns={0})


def _trial_lines(report: Mapping[str, Any]) -> list[str]:
    baseline, _ = baseline_and_answer(report)
    best = best_trial(report)
    lines = [["", *KNOBS, "mIoU %", _short(label_free_score(report), 16), "status"]]
    entries = [*([baseline] if baseline else []), *report["trials"]]
    lines += [_trial_cells(report, entry, entry["name"]) for entry in entries]
    if best:
        lines.append(_trial_cells(report, best, f"best: {best['name']}"))
    return [*_aligned(lines, left_columns={0, len(lines[0]) - 1}), *_score_lines(report, entries)]


def _score_lines(report: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """All scores without labels, and how they rank the trials where mIoU is known; none: nothing."""
    shown = [name for name in LABEL_FREE if any(is_number(e.get(name)) for e in entries)]
    if not set(shown) - {"mask_information"}:
        return []
    lines = [["", *(LABEL_FREE[name] for name in shown)]]
    for entry in entries:
        cells = [number(entry.get(name), 0 if "classes" in name else 3) for name in shown]
        lines.append([_short(entry["name"], 15), *cells])
    ranks = [rank_correlation(report["trials"], name) for name in shown]
    if any(ranks):
        values = [signed(rank and rank[0], 2) if rank else MISSING for rank in ranks]
        lines.append(["Spearman, mIoU", *values])
    return ["", *_aligned(lines, left_columns={0})]


def label_free_score(report: Mapping[str, Any]) -> str:
    """The score without labels to show beside mIoU: the one the search used, or mask_information."""
    chosen = report.get("score_name") or ""
    return "mask_information" if chosen in ("", "miou", "val_miou") else chosen


def score_of(report: Mapping[str, Any], entry: Mapping[str, Any]) -> Any:
    """The `label_free_score` of a row or a trial; a trial's plain "score" when that is the one."""
    name = label_free_score(report)
    searched_by_it = report.get("score_name") == name
    return entry.get(name, entry.get("score") if searched_by_it else None)


def _trial_cells(report: Mapping[str, Any], entry: Mapping[str, Any], name: str) -> list[str]:
    knobs = [knob(entry.get(wanted)) for wanted in KNOBS]
    measured = [number(entry.get("miou")), number(score_of(report, entry), 3)]
    status = "collapsed" if entry.get("collapsed") else entry.get("status") or MISSING
    return [_short(name, 15), *knobs, *measured, _short(status, 13)]


def _rows_that_fit(rows: list[dict], answer: dict | None, first_width: int) -> list[dict]:
    """Rows in their order, as many as MAX_WIDTH leaves room for; the answer is always among them."""
    room = MAX_WIDTH - first_width - len("  change")
    wanted = rows[:1] + [row for row in rows[1:] if row is answer]
    wanted += [row for row in rows[1:] if row is not answer]
    kept = []
    for row in wanted:
        room -= 2 + max(5, len(_short(row["name"], 16)))
        if room < 0:
            break
        kept.append(id(row))
    return [row for row in rows if id(row) in kept]


def _short(text: Any, width: int = 22) -> str:
    text = str(text)
    return text if len(text) <= width else text[: width - 3] + "..."


def _aligned(lines: list[list[str]], left_columns: set[int]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [
        [
            cell.ljust(width) if column in left_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return ["  ".join(cells).rstrip() for cells in padded]
