"""The text tables that a run prints, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Sequence

from sfss_ray.config.space import short_names
from sfss_ray.report.comparison import (
    class_changes,
    class_scores,
    label_free_name,
    label_free_score,
    rank_correlation,
    searched_settings,
)
from sfss_ray.report.formatting import (
    MISSING,
    difference,
    format_change,
    format_knob,
    format_number,
    is_number,
)
from sfss_ray.report.importance import importance_lines
from sfss_ray.report.report_record import RunRecord, ScoreRow, TrialRow

MAX_WIDTH = 100
LABEL_FREE_COLUMNS = {
    "mask_information": "mask inf.",
    "balanced_mask_information": "balanced inf.",
    "anchored_information": "anchored inf.",
    "agreement": "agreement",
    "entropy": "entropy",
    "neighbourhood_density": "density",
    "predicted_classes": "classes",
}
"""Label-free score -> its column title."""


def results_table(record: RunRecord) -> str:
    """Return the result as aligned text, source-only first.

    A search gets a line per trial (knobs, mIoU, label-free score, status), then the best trial.
    Other runs get a line per row (mIoU, its change, pixel accuracy, label-free score).
    """
    body = _trial_lines(record) if record.trials else _row_lines(record)
    return "\n".join([*_heading(record), "", *body])


def per_class_table(record: RunRecord) -> str:
    """Return the IoU of each class in percent, a column per row of the record, and the change.

    Columns that do not fit into MAX_WIDTH are left out and counted in a last line. A record
    without labels gives one sentence.
    """
    classes = record.class_set.classes
    scored = [row for row in record.rows if row.per_class]
    if not classes or not scored:
        return "no IoU per class: no labels were given"
    rows = _rows_that_fit(scored, record.answer, max(len(_short(name)) for name in classes))
    columns = [class_scores(row, len(classes)) for row in rows]
    changes = class_changes(record)
    lines = [["IoU %", *(_short(row.name, 16) for row in rows), "change"]]
    for index, name in enumerate(classes):
        ious = [format_number(column[index]) for column in columns]
        lines.append([_short(name), *ious, format_change(changes[index])])
    omitted = len(scored) - len(rows)
    notes = [f"... and {omitted} more rows in report.json"] if omitted else []
    return "\n".join([*_aligned(lines, left_columns={0}), *notes])


def _heading(record: RunRecord) -> list[str]:
    """The title, what was scored, and warnings about labels."""
    seed = MISSING if record.seed is None else record.seed
    facts = [
        f"network {record.network_scored or MISSING}",
        f"step {record.step_scored or MISSING}",
        f"seed {', '.join(map(str, record.seeds or [seed]))}",
        f"classes {record.class_set.name or MISSING}",
    ]
    lines = [record.title, ", ".join(facts)]
    if not record.labels.given:
        lines.append("no labels given: all scores below are label-free")
    if record.labels.note:
        lines.append(f"WARNING: {record.labels.note}")
    if record.external_knowledge is not None:
        lines.append(record.external_knowledge.line().replace("external", "EXTERNAL", 1))
    if record.used_oracle:
        lines.append("ORACLE: target labels were used to choose the best trial")
    return lines


def _row_lines(record: RunRecord) -> list[str]:
    lines = [["", "mIoU %", "change", "pixel accuracy %", label_free_name(record)]]
    for row in record.rows:
        before = record.baseline.miou if record.baseline and row is not record.baseline else None
        gain = format_change(difference(before, row.miou))
        scores = [format_number(row.miou), gain, format_number(row.pixel_accuracy)]
        label_free = format_number(label_free_score(record, row), 3)
        lines.append([_short(row.name, 40), *scores, label_free])
    return _aligned(lines, left_columns={0})


def _trial_lines(record: RunRecord) -> list[str]:
    names = searched_settings(record.trials)
    lines, columns = _trial_heading(short_names(names), label_free_name(record))
    hidden = len(names) - columns
    names = names[:columns]
    notes = [f"... and {hidden} more in report.json"] if hidden else []
    entries = _entries(record)
    lines += [_trial_cells(record, entry, entry.name, names) for entry in entries]
    if record.best:
        lines.append(_trial_cells(record, record.best, f"best: {record.best.name}", names))
    table = _aligned(lines, left_columns={0, len(lines[0]) - 1})
    return [*table, *notes, *importance_lines(record), *_score_lines(record, entries)]


def _trial_heading(settings: Sequence[str], score: str) -> tuple[list[list[str]], int]:
    """Return the lines above the trials, and how many settings have a column.

    Titles that have no room in one line stand in two.
    """
    one_line = [("", _short(setting, 16)) for setting in settings]
    score_title = ("", _short(score, 16))
    columns = _count_fitting(one_line, score_title)
    if columns == len(settings):
        cells = ["", *(lower for _, lower in one_line), "mIoU %", score_title[1], "status"]
        return [cells], columns
    two_lines = [_in_two_lines(setting) for setting in settings]
    score_title = _in_two_lines(score)
    columns = _count_fitting(two_lines, score_title)
    fitting = two_lines[:columns]
    return [
        ["", *(upper for upper, _ in fitting), "", score_title[0], ""],
        ["", *(lower for _, lower in fitting), "mIoU %", score_title[1], "status"],
    ], columns


def _in_two_lines(title: str) -> tuple[str, str]:
    """Return a title of several words with the last one in a line of its own."""
    upper, _, lower = title.rpartition("_")
    return _short(upper, 16), _short(lower, 16)


def _count_fitting(titles: Sequence[tuple[str, str]], score: tuple[str, str]) -> int:
    """Return how many of the settings with these titles the table of trials has room for."""
    room = MAX_WIDTH - 15 - len("  mIoU %") - 2 - max(map(len, score)) - 15  # trial ... status
    for count, title in enumerate(titles):
        room -= 2 + max(9, *map(len, title))
        if room < 0:
            return count
    return len(titles)


def _entries(record: RunRecord) -> list[ScoreRow | TrialRow]:
    """The source-only row, then all trials."""
    return [*([record.baseline] if record.baseline else []), *record.trials]


def _score_lines(record: RunRecord, entries: Sequence[ScoreRow | TrialRow]) -> list[str]:
    """A second table with all label-free scores and their rank correlation with mIoU.

    Empty when mask_information is the only one, as the first table shows it.
    """
    names = [n for n in LABEL_FREE_COLUMNS if any(is_number(getattr(e, n)) for e in entries)]
    if not set(names) - {"mask_information"}:
        return []
    lines = [["", *(LABEL_FREE_COLUMNS[name] for name in names)]]
    for entry in entries:
        cells = [format_number(getattr(entry, n), 0 if "classes" in n else 3) for n in names]
        lines.append([_short(entry.name, 15), *cells])
    ranks = [rank_correlation(record.trials, name) for name in names]
    if any(ranks):
        cells = [format_change(rank[0], 2) if rank else MISSING for rank in ranks]
        lines.append(["Spearman, mIoU", *cells])
    return ["", *_aligned(lines, left_columns={0})]


def _trial_cells(
    record: RunRecord, entry: ScoreRow | TrialRow, name: str, settings: Sequence[str]
) -> list[str]:
    """The cells of a trial, or of the source-only row, which has no settings and no status."""
    trial = entry if isinstance(entry, TrialRow) else TrialRow(entry.name)
    knobs = [_short(format_knob(trial.values.get(setting)), 16) for setting in settings]
    scores = [format_number(entry.miou), format_number(label_free_score(record, entry), 3)]
    status = "collapsed" if entry.collapsed else trial.status or MISSING
    return [_short(name, 15), *knobs, *scores, _short(status, 13)]


def _rows_that_fit(
    rows: list[ScoreRow], answer: ScoreRow | None, first_width: int
) -> list[ScoreRow]:
    """The rows that fit into MAX_WIDTH, in their order; the first and the answer come before others."""
    room = MAX_WIDTH - first_width - len("  change")
    by_priority = rows[:1] + [row for row in rows[1:] if row is answer]
    by_priority += [row for row in rows[1:] if row is not answer]
    fitting = []
    for row in by_priority:
        room -= 2 + max(5, len(_short(row.name, 16)))
        if room < 0:
            break
        fitting.append(id(row))
    return [row for row in rows if id(row) in fitting]


def _short(text: str, width: int = 22) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _aligned(lines: list[list[str]], left_columns: set[int]) -> list[str]:
    """Pad the cells of a table to the width of their column."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [
        [
            cell.ljust(width) if column in left_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return ["  ".join(cells).rstrip() for cells in padded]
