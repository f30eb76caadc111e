"""A training on a Ray Train worker: the training code is the local one, Ray keeps the checkpoints."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import ray.train.collective
import ray.train.torch
import torch

from sfss_ray.runtime.devices import worker_device
from sfss_ray.runtime.threads import use_threads
from sfss_ray.storage.files import write_torch
from sfss_ray.storage.places import ObjectPath, Place
from sfss_ray.train.progress_tail import WORKERS
from sfss_ray.train.run_state import STOP_FILE, ProgressLog, load_state, save_state


class StopTrainingError(Exception):
    """The search has asked for the end of this training."""


class RayRun:
    """A `Run` inside a TorchTrainer worker.

    Args:
        folder: Folder or address of the progress file. Every node must see it.
        device: 'cuda' for the GPU that Ray assigned, or 'cpu'.
        may_stop: Whether STOP_FILE in the folder ends the training at the next report.
        is_elastic: Whether the number of workers may change, so that progress records have it.
    """

    def __init__(
        self,
        folder: Place,
        device: str = "cpu",
        may_stop: bool = False,
        is_elastic: bool = False,
    ):
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        on_gpu = device == "cuda"
        self.device = ray.train.torch.get_device() if on_gpu else torch.device("cpu")
        self.folder, self.may_stop = folder, may_stop
        self._progress = ProgressLog(folder)
        self._facts = {WORKERS: self.world} if is_elastic else {}

    def resume_state(self) -> dict[str, Any] | None:
        """Return the newest checkpoint that Ray has of this run, or None."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return load_state(Path(folder))

    def report(self, metrics: dict[str, Any], state: Callable[[], dict[str, Any]]) -> None:
        """Report the metrics on every worker, with a checkpoint on rank 0.

        Raises:
            StopTrainingError: on every worker, where the search has asked for the end.
        """
        self._report(metrics, state)
        if self.may_stop:
            is_stopped = (self.folder / STOP_FILE).exists() if self.rank == 0 else None
            if ray.train.collective.broadcast_from_rank_zero(is_stopped):
                raise StopTrainingError

    def _report(self, metrics: dict[str, Any], state: Callable[[], dict[str, Any]]) -> None:
        if self.rank:
            ray.train.report(metrics)
            return
        if isinstance(self.folder, ObjectPath):
            self._upload_behind(metrics, state())
            return
        with tempfile.TemporaryDirectory() as folder:
            save_state(Path(folder), state())
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _upload_behind(self, metrics: dict[str, Any], state: dict[str, Any]) -> None:
        """Report a checkpoint that Ray uploads while the training proceeds.

        Ray counts a checkpoint once it is whole, and awaits the last one before the worker ends.
        """
        folder = tempfile.mkdtemp(prefix="sfss_ray-checkpoint-")
        save_state(Path(folder), state)
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )

    def is_preempted(self) -> bool:
        """Return whether Ray knows that a worker's node will go, such as a spot node.

        A trial has no checkpoint between two evaluations, because its reports go to Tune with scores.
        """
        return not self.may_stop and ray.train.get_preemption_info() is not None

    def log(self, record: dict[str, Any]) -> None:
        """Append a record to the run's progress file."""
        self._progress.append(record | self._facts)

    def save(self, name: str, content: dict[str, Any]) -> None:
        """Write a file into the run's folder."""
        write_torch(self.folder / name, content)


class CheckedTorchConfig(ray.train.torch.TorchConfig):
    """Ray's configuration of PyTorch, with a check of each worker's GPU before the workers are joined.

    NCCL, which joins workers with GPUs, is built before the training function runs. Where torch cannot
    use the GPU it fails with an error that names no node.
    """

    @property
    def backend_cls(self) -> Any:
        """Ray's own backend, which checks first."""
        ray_backend: Any = super().backend_cls

        class CheckedBackend(ray_backend):
            def on_start(self, worker_group: Any, backend_config: Any) -> None:
                worker_group.execute(worker_device, "cuda")
                super().on_start(worker_group, backend_config)

        return CheckedBackend


def train_on_worker(payload: dict[str, Any]) -> None:
    """Run a training job. Ray Train calls it on every worker.

    Args:
        payload: `job`, a `TrainingJob`, `folder` of the progress file, `threads` per worker,
            `device` of the workers, 'cpu' or 'cuda', `may_stop` and `is_elastic`, see `RayRun`.
    """
    use_threads(payload["threads"])
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(payload["threads"])))
    job = payload["job"]
    device = worker_device(payload["device"])
    run = RayRun(payload["folder"], device, payload["may_stop"], payload["is_elastic"])
    with contextlib.suppress(StopTrainingError):
        job.train(job.task, run, job.watch if run.rank == 0 else None)
