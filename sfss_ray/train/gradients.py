"""One optimiser step: gradients accumulated over the parts of a batch, clipped and checked."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfss_ray.errors import TrainingError
from sfss_ray.train.batch_norm import explain_single_values

Batch = dict[str, Any]
"""Tensors by name, the first dimension of each counting images."""

Metrics = dict[str, Tensor]
"""Scalars by name."""

ComputeLoss = Callable[[int, Batch], tuple[Tensor, Metrics]]
"""Takes the index of a batch's part (from 0) and the part. Returns its loss and its metrics."""


@dataclass(frozen=True)
class StepContext:
    """What a training step knows about its run."""

    step: int
    """Number of the step, from 1."""
    last_checkpoint: int = 0
    """Step of the newest checkpoint, 0 before the first."""


@dataclass(frozen=True)
class Learner:
    """A module with its optimiser, as one optimiser step needs them."""

    module: nn.Module
    """Called for the forward pass. It is DistributedDataParallel with several workers."""
    optimizer: torch.optim.Optimizer
    max_grad_norm: float

    def update(
        self, parts: Sequence[Batch], compute_loss: ComputeLoss, context: StepContext
    ) -> Metrics:
        """Take one optimiser step on the mean loss of a batch's parts.

        Args:
            parts: The batch in equal parts. Only one part's graph is in memory at a time.
            compute_loss: Returns the loss and the metrics of a part.
            context: Named in the error.

        Returns:
            The mean of each metric over the parts.

        Raises:
            TrainingError: if the gradient is NaN or Inf. It names the step, the loss and the newest
                checkpoint.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        part_metrics: list[Metrics] = []
        for index, part in enumerate(parts):
            with self._gradient_sync(index == len(parts) - 1), explain_single_values():
                loss, metrics = compute_loss(index, part)
                (loss / len(parts)).backward()
            losses.append(loss.detach())
            part_metrics.append(metrics)
        # DDP makes the norm equal on all workers, so they all stop in the same step, before anything
        # that is not finite reaches a weight or a checkpoint.
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm).item()
        if not math.isfinite(norm):
            raise TrainingError(_divergence(_mean(losses).item(), norm, context))
        self.optimizer.step()
        return {name: _mean([m[name] for m in part_metrics]) for name in part_metrics[0]}

    def _gradient_sync(self, last_part: bool) -> contextlib.AbstractContextManager:
        """Let DDP exchange gradients in the last part only."""
        no_sync = getattr(self.module, "no_sync", None)
        return contextlib.nullcontext() if last_part or no_sync is None else no_sync()


def split_batch(batch: Batch, count: int) -> list[Batch]:
    """Split a batch into `count` equal parts, in order."""
    chunks = {name: tensor.chunk(count) for name, tensor in batch.items()}
    return [{name: tensors[k] for name, tensors in chunks.items()} for k in range(count)]


def _mean(scalars: list[Tensor]) -> Tensor:
    return torch.stack(scalars).mean(0)


def _divergence(loss: float, norm: float, context: StepContext) -> str:
    checkpoint = (
        f"the checkpoint of step {context.last_checkpoint} is kept"
        if context.last_checkpoint
        else "no checkpoint was saved yet"
    )
    return (
        f"the loss is {loss:.4g} and its gradient norm {norm:.4g} at step {context.step}"
        f" ({checkpoint}): lower the learning rate or raise the temperature, and run again"
    )
