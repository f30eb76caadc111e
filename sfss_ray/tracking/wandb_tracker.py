"""A run in Weights & Biases, online or offline as its own settings say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfss_ray.storage.files import write_text
from sfss_ray.storage.places import Place
from sfss_ray.tracking.tracker import require_package

PROJECT = "sfss_ray"
"""Project of the runs, unless WANDB_PROJECT names another."""


class WandbTracker:
    """Writes config, metrics, pictures and files as one W&B run.

    WANDB_MODE, WANDB_PROJECT and WANDB_ENTITY have their usual meaning. The run's id is stored in
    `folder`, so that a resumed run continues the same W&B run.

    Trials log at the same time, each at its own step. W&B wants one ascending step for a whole
    run, so each prefix gets its own step metric instead, such as `train/step`.

    Args:
        folder: Where the id and W&B's local files go. At an address, the files go where W&B keeps them.
    """

    def __init__(self, folder: Place):
        self.folder = folder
        self.id_file = folder / "wandb_run_id"

    def start(self, run_name: str, config: Mapping[str, Any]) -> None:
        """Create the run, or continue the stored one."""
        self._wandb = require_package("wandb")
        run_id = self.id_file.read_text() if self.id_file.exists() else None
        folder = self.folder if isinstance(self.folder, Path) else None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=run_name,
            id=run_id,
            resume="allow",
            dir=None if folder is None else str(folder),
            config=dict(config),
            allow_val_change=True,
            reinit="create_new",  # a run that the caller has open stays as it is
        )
        write_text(self.id_file, self._run.id)
        self._prefixes: set[str] = set()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of one step, with the step metric of each prefix."""
        prefixes = {name.partition("/")[0] for name in metrics}
        for prefix in prefixes - self._prefixes:
            self._run.define_metric(f"{prefix}/step")
            self._run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")
        self._prefixes |= prefixes
        steps = {f"{prefix}/step": step for prefix in prefixes}
        self._run.log({**metrics, **steps})

    def log_text(self, name: str, text: str) -> None:
        """Put a text into the summary of the run."""
        self._run.summary[name] = text

    def log_artifact(self, path: Path) -> None:
        """Show pictures and the page in the workspace; save other files with the run."""
        if path.suffix == ".png":
            self._run.log({f"pictures/{path.stem}": self._wandb.Image(str(path))})
        elif path.suffix == ".html":
            self._run.log({path.stem: self._wandb.Html(str(path))})
        else:
            self._run.save(str(path), base_path=str(path.parent), policy="now")

    def finish(self, failed: bool) -> None:
        """End the run and wait until its files are written."""
        self._run.finish(exit_code=1 if failed else 0)
