"""Training without a cluster."""

from __future__ import annotations

import pytest

from sfss_ray.runtime import cluster
from sfss_ray.runtime.resources import Resources
from sfss_ray.train import launch
from sfss_ray.train.run_state import LocalRun, load_state


def train_in_process(monkeypatch: pytest.MonkeyPatch) -> list:
    """Train in this process where Ray would; return the list of the trainings' folders."""
    folders: list = []

    def fit(job, folder, *_, **__):
        folders.append(folder)
        job.train(job.task, LocalRun(folder / "train"), job.watch)
        return load_state(folder / "train")

    monkeypatch.setattr(launch, "fit", fit)
    resources = Resources(2.0, 0, ((2.0, 0.0),))
    monkeypatch.setattr(cluster, "capacity", lambda compute: resources)
    return folders
