"""Running a training on Ray Train's workers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfss_ray.config import ComputeConfig, Config
from sfss_ray.errors import TrainingError
from sfss_ray.runtime import cluster
from sfss_ray.runtime.progress import ProgressSink, print_line
from sfss_ray.runtime.resources import placement_options, training_demand
from sfss_ray.storage.files import is_disk_full
from sfss_ray.storage.places import ObjectPath, Place
from sfss_ray.train.progress_tail import RecordSink, following

_START_TIMEOUT_S = 10
"""Seconds that Ray waits for the reservation of an elastic training's workers."""


@dataclass(frozen=True)
class TrainingJob:
    """A training as the workers run it. It is pickled and sent to them."""

    train: Callable[..., None]
    """Called with (task, run, watch): `adapt_student` or `pretrain`."""
    task: Any
    """An `AdaptationTask` or a `PretrainingTask`."""
    watch: Any = None
    """Scores the networks at each checkpoint on rank 0. None scores nothing."""


def fit(
    job: TrainingJob,
    folder: Place,
    config: Config,
    progress: ProgressSink = print_line,
    callbacks: list[Any] | None = None,
    on_record: RecordSink | None = None,
) -> dict[str, Any]:
    """Run a training on Ray Train workers and return the state of its last step.

    Checkpoints and the progress file lie in `folder`/train. Called again with the same folder, it
    resumes from the newest checkpoint.

    Args:
        job: What to train.
        folder: A path that every node sees, or an address.
        config: `compute` is used.
        progress: Called with a line for each progress record.
        callbacks: Of Ray Train's RunConfig.
        on_record: Called with the name of the training and each new progress record.

    Raises:
        TrainingError: the training failed, or workers died more often than `max_failures`.
    """
    compute = config.compute
    device = cluster.resolve_device(compute)
    with (
        cluster.connected(compute) as resources,
        following(
            lambda: {"train": folder / "train"}, progress, on_record, score=config.tune.score
        ),
    ):
        from sfss_ray.train.run_state import load_state

        demand = training_demand(compute, device)
        cluster.wait_for_nodes(compute, demand, resources, progress)
        trainer = _build_trainer(job, folder, compute, device, callbacks)
        with _short_start_timeout(compute):
            checkpoint = _fit_or_explain(trainer).checkpoint
        assert checkpoint is not None, "the last step always saves a checkpoint"
        with checkpoint.as_directory() as checkpoint_folder:
            return load_state(Path(checkpoint_folder))


def _build_trainer(
    job: TrainingJob,
    folder: Place,
    compute: ComputeConfig,
    device: str,
    callbacks: list[Any] | None,
) -> Any:
    import ray.train
    import ray.train.torch

    from sfss_ray.train.worker import CheckedTorchConfig, train_on_worker

    payload = {
        "job": job,
        "folder": folder / "train",
        "threads": compute.cpus_per_worker,
        "device": device,
        "may_stop": bool(callbacks),  # reports go to a search
        "is_elastic": not compute.workers.is_fixed,
    }
    gpus = compute.gpus_per_worker if device == "cuda" else 0.0
    return ray.train.torch.TorchTrainer(
        train_on_worker,
        train_loop_config=payload,
        torch_config=CheckedTorchConfig() if device == "cuda" else None,
        scaling_config=ray.train.ScalingConfig(
            num_workers=_worker_range(compute),
            elastic_resize_monitor_interval_s=compute.resize_interval_s,
            use_gpu=device == "cuda",
            resources_per_worker=_worker_resources(compute, device),
            **placement_options(compute, gpus),
        ),
        run_config=ray.train.RunConfig(
            name="train",
            **ray_storage(folder),
            failure_config=ray.train.FailureConfig(max_failures=compute.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=callbacks,
        ),
    )


@contextlib.contextmanager
def _short_start_timeout(compute: ComputeConfig) -> Iterator[None]:
    """Let Ray try another number of workers soon, where the number may change.

    Ray learns of a lost node up to 20 s after the workers' failure. Until then it tries to start as many
    workers as before, and waits a minute for each try. A value that the user has set stays.
    """
    name = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
    if compute.workers.is_fixed or name in os.environ:
        yield
        return
    os.environ[name] = f"{_START_TIMEOUT_S}"
    try:
        yield
    finally:
        del os.environ[name]


def ray_storage(folder: Place) -> dict[str, Any]:
    """Return the arguments of Ray's RunConfig that keep its files in a folder or below an address."""
    if isinstance(folder, ObjectPath):
        return {"storage_path": folder.filesystem_path, "storage_filesystem": folder.filesystem}
    return {"storage_path": str(folder)}


def _worker_range(compute: ComputeConfig) -> int | tuple[int, int]:
    """Return the number of workers, or the range in which Ray may change it."""
    workers = compute.workers
    return workers.largest if workers.is_fixed else (workers.smallest, workers.largest)


def _worker_resources(compute: ComputeConfig, device: str) -> dict[str, float]:
    gpus = {"GPU": compute.gpus_per_worker} if device == "cuda" else {}
    return {"CPU": compute.cpus_per_worker} | gpus


def _fit_or_explain(trainer: Any) -> Any:
    """Fit, and turn Ray's error into one line with its innermost cause."""
    import ray.train

    try:
        return trainer.fit()
    except ray.train.TrainingFailedError as error:
        failures = list(getattr(error, "worker_failures", {}).values())
        cause = innermost_cause(failures[0] if failures else error)
        text = str(cause).strip().splitlines()[-1] if str(cause).strip() else repr(cause)
        advice = ""
        if isinstance(cause, OSError) and is_disk_full(cause):
            advice = "; free some space and run again: training resumes from its last checkpoint"
        raise TrainingError(f"training stopped: {text}{advice}") from error


def innermost_cause(error: BaseException) -> BaseException:
    """Follow Ray's `cause` and Python's `__cause__` to the error that started it all."""
    while cause := getattr(error, "cause", None) or error.__cause__:
        error = cause
    return error
