"""A run in MLflow, at the tracking server or store that MLflow itself is configured for."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfss_ray.storage.files import write_text
from sfss_ray.storage.places import Place
from sfss_ray.tracking.tracker import require_package

EXPERIMENT = "sfss_ray"
"""Experiment of the runs, unless MLFLOW_EXPERIMENT_NAME names another."""
PARAMS_PER_CALL = 100
MAX_PARAM_LENGTH = 500
"""Limits of MLflow's tracking servers."""


class MlflowTracker:
    """Writes params, metrics and artifacts as one MLflow run.

    MLFLOW_TRACKING_URI names the server or store; without it MLflow uses its local default. The
    run's id is stored in `folder`, so that a resumed run continues the same MLflow run. The client
    is used instead of MLflow's active run, which belongs to one thread.

    Args:
        folder: Folder or address where the id is stored.
    """

    def __init__(self, folder: Place):
        self.id_file = folder / "mlflow_run_id"

    def start(self, run_name: str, config: Mapping[str, Any]) -> None:
        """Continue the stored run, or create one with the config as params."""
        mlflow = require_package("mlflow")
        self._client = mlflow.MlflowClient()
        self._metric = mlflow.entities.Metric
        if self._continue_run(mlflow.exceptions.MlflowException):
            return
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        existing = self._client.get_experiment_by_name(experiment)
        if existing:
            experiment_id = existing.experiment_id
        else:
            experiment_id = self._client.create_experiment(experiment)
        run = self._client.create_run(experiment_id, run_name=run_name)
        self.run_id = run.info.run_id
        write_text(self.id_file, self.run_id)
        params = [
            mlflow.entities.Param(_safe_name(name), str(value)[:MAX_PARAM_LENGTH])
            for name, value in sorted(config.items())
        ]
        for start in range(0, len(params), PARAMS_PER_CALL):
            self._client.log_batch(self.run_id, params=params[start : start + PARAMS_PER_CALL])

    def _continue_run(self, unknown_run: type[Exception]) -> bool:
        """Reopen the stored run; False where there is none, or where this server lacks it."""
        if not self.id_file.exists():
            return False
        self.run_id = self.id_file.read_text()
        try:
            self._client.get_run(self.run_id)
        except unknown_run:
            return False
        self._client.update_run(self.run_id, status="RUNNING")
        return True

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Send the metrics of one step in one call."""
        now = int(1000 * time.time())
        batch = [self._metric(_safe_name(n), number, now, step) for n, number in metrics.items()]
        self._client.log_batch(self.run_id, metrics=batch)

    def log_text(self, name: str, text: str) -> None:
        """Store a text as an artifact."""
        self._client.log_text(self.run_id, text, f"{_safe_name(name)}.txt")

    def log_artifact(self, path: Path) -> None:
        """Store a file as an artifact, pictures in a folder of their own."""
        folder = "pictures" if path.suffix == ".png" else None
        self._client.log_artifact(self.run_id, str(path), folder)

    def finish(self, failed: bool) -> None:
        """Mark the run as finished or failed."""
        self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")


def _safe_name(name: str) -> str:
    """Replace characters that MLflow refuses in names."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)
