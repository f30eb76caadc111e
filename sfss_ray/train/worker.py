"""A training run on a Ray Train worker: the same loops, with Ray keeping the state."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch

from sfss_ray.runtime.threads import use_threads
from sfss_ray.train.run_state import append_progress, load_state, save_state


class RayRun:
    """A `Run` inside a TorchTrainer worker. `folder` must be seen by every node."""

    def __init__(self, folder: Path):
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.folder = folder

    def resume_state(self) -> dict[str, Any] | None:
        """The newest checkpoint that Ray knows of this run."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return load_state(Path(folder))

    def report(self, metrics: dict[str, Any], state: Callable[[], dict[str, Any]]) -> None:
        """Every worker reports; rank 0 brings the checkpoint."""
        if self.rank:
            state()
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            save_state(Path(folder), state())
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def log(self, record: dict[str, Any]) -> None:
        """Append to the run's progress file."""
        append_progress(self.folder, record)


def train_on_worker(payload: dict[str, Any]) -> None:
    """Entry of every worker: `payload` holds the loop, its task, its watch, folder, threads."""
    use_threads(payload["threads"])
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(payload["threads"])))
    loop, task, watch = payload["loop"], payload["task"], payload["watch"]
    run = RayRun(Path(payload["folder"]))
    loop(task, run, watch if run.rank == 0 else None)
