"""A search as plain values, for report.json."""

from __future__ import annotations

from typing import Any

from sfss_ray.config.consistency import SCORES
from sfss_ray.tune.search import SearchResult


def describe_search(search: SearchResult) -> dict[str, Any]:
    """Trials with their values, scores and ends; the best of them; what it was chosen by."""
    trials = [
        {
            "name": trial.name,
            "temperature": trial.values["train.loss.temperature"],
            "contrast_weight": trial.values["train.loss.contrast_weight"],
            "ema_momentum": trial.values["train.ema_momentum"],
            "steps": int(trial.metrics.get("step", 0)),
            "status": trial.status,
            "miou": trial.metrics.get("val_miou"),
            **{name: trial.metrics.get(name) for name in SCORES},
            "predicted_classes": trial.metrics.get("predicted_classes"),
            "class_entropy": trial.metrics.get("class_entropy"),
            "collapsed": trial.collapsed,
            "score": trial.metrics.get("score"),
            "error": trial.error,
        }
        for trial in search.trials
    ]
    return {
        "trials": trials,
        "best_trial": search.best,
        "score_name": search.score_name,
        "oracle": search.oracle,
    }
