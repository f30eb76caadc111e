"""The training loop that adaptation and pretraining share: step, log, evaluate, checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from sfss_ray.method.collective import mean_over_workers
from sfss_ray.train.data_parallel import to_device
from sfss_ray.train.gradients import Batch, Metrics, StepContext
from sfss_ray.train.run_state import Run

LOG_EVERY = 10
"""Steps between two progress lines."""


class Trainable(Protocol):
    """What the loop trains."""

    def initialize(self) -> None:
        """Prepare a run that starts at step 1."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        ...

    def distribute(self) -> None:
        """Wrap the trained network for several workers, once its weights are those to start from."""
        ...

    def batches(self, start: int) -> Iterable[Batch]:
        """Return this worker's batches of the steps after `start`, on the CPU."""
        ...

    def step(self, batch: Batch, context: StepContext) -> Metrics:
        """Take one optimiser step and return scalars to log."""
        ...

    def evaluate(self, step: int) -> dict[str, float]:
        """Return scores to report after a step, which are never used for training."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, the step apart."""
        ...


@dataclass(frozen=True)
class Schedule:
    """How long a training runs, and how often it is evaluated and saved."""

    num_steps: int
    checkpoint_every: int
    """Steps between two evaluations, each with a checkpoint. The last step always has one."""
    seed: int


def run_loop(trainable: Trainable, run: Run, schedule: Schedule) -> None:
    """Train up to step `num_steps`, resuming from the run's newest checkpoint if there is one.

    Rank 0 evaluates while the other workers wait in `run.report`. The first notice that a node will go
    saves a checkpoint between two evaluations.
    """
    start = _restore(trainable, run)
    trainable.distribute()
    last_checkpoint, was_warned = start, False
    unlogged: list[dict[str, float]] = []
    for step, batch in enumerate(trainable.batches(start), start + 1):
        _seed_step(schedule.seed, step, run)
        context = StepContext(step, last_checkpoint)
        unlogged.append(_to_floats(trainable.step(to_device(batch, run.device), context)))

        checkpoint_due = step % schedule.checkpoint_every == 0 or step == schedule.num_steps
        if not checkpoint_due and step % LOG_EVERY:
            continue
        metrics = mean_over_workers(_means(unlogged), run.device)
        unlogged = []
        record: dict[str, Any] = {"step": step, "num_steps": schedule.num_steps, **metrics}
        if run.rank == 0:
            record |= trainable.evaluate(step) if checkpoint_due else {}
            run.log(record)
        is_warned = not was_warned and run.is_preempted()
        was_warned |= is_warned
        if checkpoint_due or is_warned:
            run.report(record, partial(_checkpoint, trainable, step))
            last_checkpoint = step


def _restore(trainable: Trainable, run: Run) -> int:
    """Load the run's newest checkpoint, or initialise a new run. Return the steps already taken."""
    state = run.resume_state()
    if state is None:
        trainable.initialize()
        return 0
    trainable.load_state_dict(state)
    return state["step"]


def _checkpoint(trainable: Trainable, step: int) -> dict[str, Any]:
    return {"step": step} | trainable.state_dict()


def _seed_step(seed: int, step: int, run: Run) -> None:
    """Seed the global generator, so that dropout of a resumed run draws as in an uninterrupted one."""
    torch.manual_seed((seed * 1_000_003 + step) * run.world + run.rank)


def _to_floats(metrics: Metrics) -> dict[str, float]:
    """Copy scalars to the host, all in one transfer."""
    scalars = torch.stack([scalar.double() for scalar in metrics.values()]).tolist()
    return dict(zip(metrics, scalars, strict=True))


def _means(records: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(r[name] for r in records) / len(records) for name in records[0]}
