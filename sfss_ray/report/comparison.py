"""Comparisons that terminal and page share: classes, label-free scores, ranks of trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sfss_ray.report.formatting import difference, is_number
from sfss_ray.report.report_record import RunRecord, ScoreRow, TrialRow


def searched_settings(trials: Sequence[TrialRow]) -> list[str]:
    """Return the dotted names of the settings that the trials have values of, in their order."""
    return list(dict.fromkeys(name for trial in trials for name in trial.values))


def class_scores(row: ScoreRow | None, num_classes: int) -> list[float | None]:
    """Return the IoU of each class in percent, None for a class that is absent or not scored."""
    per_class = row.per_class if row and row.per_class is not None else ()
    ious = [float(iou) if is_number(iou) else None for iou in list(per_class)[:num_classes]]
    return ious + [None] * (num_classes - len(ious))


def class_changes(record: RunRecord) -> list[float | None]:
    """Return how each class's IoU changed from source-only to the answer, None where unknown."""
    num_classes = len(record.class_set.classes)
    before, after = (class_scores(row, num_classes) for row in (record.baseline, record.answer))
    return [difference(*pair) for pair in zip(before, after, strict=True)]


def label_free_name(record: RunRecord) -> str:
    """Return the label-free score to show beside mIoU: the search's, or that of the verdict.

    Reports of earlier versions, and runs without a reference, have mask_information alone.
    """
    name = record.score_name or ""
    if name not in ("", "miou", "val_miou"):
        return name
    entries = (*record.rows, *record.trials)
    is_known = any(is_number(entry.anchored_information) for entry in entries)
    return "anchored_information" if is_known else "mask_information"


def label_free_score(record: RunRecord, entry: ScoreRow | TrialRow) -> Any:
    """Return the `label_free_name` score of a row or trial.

    A trial without a score of that name shows the value that it was compared by, if both are one.
    """
    name = label_free_name(record)
    score = getattr(entry, name, None)
    if score is None and record.score_name == name and isinstance(entry, TrialRow):
        return entry.score
    return score


def rank_correlation(
    trials: Sequence[TrialRow], score: str = "mask_information"
) -> tuple[float, int] | None:
    """Compute Spearman's correlation of a score with mIoU over finished trials.

    Returns:
        The correlation and the number of trials. None with fewer than three such trials, or when
        the score or the mIoU is the same in all of them.
    """
    pairs = [(getattr(t, score, None), t.miou) for t in trials if t.status == "finished"]
    columns = np.array([p for p in pairs if is_number(p[0]) and is_number(p[1])], dtype=float)
    if len(columns) < 3 or (np.ptp(columns, axis=0) == 0).any():
        return None
    ranks = [_mean_ranks(column) for column in columns.T]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1]), len(columns)


def _mean_ranks(scores: np.ndarray) -> np.ndarray:
    """Rank each score; equal scores share the mean of their ranks."""
    below = (scores[None] < scores[:, None]).sum(1)
    equal = (scores[None] == scores[:, None]).sum(1)
    return below + (equal - 1) / 2
