"""The trials of a search as rows of a report."""

from __future__ import annotations

from sfss_ray.config.consistency import SCORES
from sfss_ray.report.report_record import TrialRow
from sfss_ray.tune.search import SearchResult


def trial_rows(search: SearchResult) -> tuple[TrialRow, ...]:
    """Return a row per trial: its hyperparameters, the scores of its last step, and its status."""
    return tuple(
        TrialRow(
            name=trial.name,
            values=dict(trial.values),
            steps=int(trial.metrics.get("step", 0)),
            status=trial.status,
            miou=trial.metrics.get("val_miou"),
            **{name: trial.metrics.get(name) for name in SCORES},
            predicted_classes=trial.metrics.get("predicted_classes"),
            class_entropy=trial.metrics.get("class_entropy"),
            collapsed=trial.collapsed,
            score=trial.metrics.get("score"),
            error=trial.error,
        )
        for trial in search.trials
    )
