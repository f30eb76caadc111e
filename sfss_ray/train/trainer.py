"""Training loops on Ray Train's workers, the door."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfss_ray.config import ComputeConfig, Config
from sfss_ray.errors import TrainingError
from sfss_ray.runtime import cluster
from sfss_ray.runtime.progress import ProgressSink, print_line
from sfss_ray.storage.files import is_disk_full
from sfss_ray.train.progress_tail import RecordSink, following


def fit(
    loop: Callable[..., None],
    task: Any,
    watch: Any,
    folder: Path,
    config: Config,
    progress: ProgressSink = print_line,
    callbacks: list[Any] | None = None,
    on_record: RecordSink | None = None,
) -> dict[str, Any]:
    """Run a training loop on Ray Train workers; returns the state of the last step.

    Checkpoints lie in `folder`/train. The same folder goes on from its newest checkpoint.
    """
    device = cluster.resolve_device(config.compute)
    with (
        cluster.connected(config.compute),
        following(lambda: {"train": folder / "train"}, progress, on_record=on_record),
    ):
        import ray.train
        import ray.train.torch

        from sfss_ray.train.run_state import load_state
        from sfss_ray.train.worker import train_on_worker

        compute = config.compute
        payload = {"loop": loop, "task": task, "watch": watch}
        payload |= {"folder": str(folder / "train"), "threads": compute.cpus_per_worker}
        trainer = ray.train.torch.TorchTrainer(
            train_on_worker,
            train_loop_config=payload,
            scaling_config=ray.train.ScalingConfig(
                num_workers=compute.num_workers,
                use_gpu=device == "cuda",
                resources_per_worker=_worker_resources(compute, device),
            ),
            run_config=ray.train.RunConfig(
                name="train",
                storage_path=str(folder),
                failure_config=ray.train.FailureConfig(max_failures=compute.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
                callbacks=callbacks,
            ),
        )
        checkpoint = _fit_or_explain(trainer).checkpoint
        assert checkpoint is not None, "a loop of one step or more saves a checkpoint"
        with checkpoint.as_directory() as saved:
            return load_state(Path(saved))


def _worker_resources(compute: ComputeConfig, device: str) -> dict[str, float]:
    gpus = {"GPU": 1.0} if device == "cuda" else {}
    return {"CPU": compute.cpus_per_worker} | gpus


def _fit_or_explain(trainer: Any):
    import ray.train

    try:
        return trainer.fit()
    except ray.train.TrainingFailedError as error:
        reasons = list(getattr(error, "worker_failures", {}).values()) or [error]
        cause = reasons[0]
        while getattr(cause, "cause", None) or cause.__cause__:
            cause = getattr(cause, "cause", None) or cause.__cause__
        text = str(cause).strip().splitlines()[-1] if str(cause).strip() else repr(cause)
        advice = ""
        if isinstance(cause, OSError) and is_disk_full(cause):
            advice = "; free some space and run again: training resumes from its last checkpoint"
        raise TrainingError(f"training stopped: {text}{advice}") from error
