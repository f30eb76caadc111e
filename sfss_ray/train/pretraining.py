"""Supervised training of a source model with cross entropy, in plain PyTorch on any `Run`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfss_ray.config import Config
from sfss_ray.data.augment import fit_crop
from sfss_ray.data.class_sets import IGNORE_INDEX, ClassSet
from sfss_ray.data.folders import LabelledImage
from sfss_ray.method.collective import average_buffers, sum_over_workers, world_size
from sfss_ray.method.losses import segmentation_loss
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.model_file import load_model
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.storage.places import Place
from sfss_ray.train.batch_norm import set_batch_norm
from sfss_ray.train.data_parallel import autocast, distribute, share_of
from sfss_ray.train.gradients import Batch, Learner, Metrics, StepContext, split_batch
from sfss_ray.train.loop import Schedule, run_loop
from sfss_ray.train.optimizer import build_optimizer, learning_rate, set_learning_rate
from sfss_ray.train.run_state import Run
from sfss_ray.train.samples import LabelledSamples, step_loader

Watch = Callable[[Segmenter], dict[str, float]]
"""Scores the network at each checkpoint. The scores are reported and never used for training."""


@dataclass(frozen=True)
class PretrainingTask:
    """The inputs of a pretraining: labelled images, their classes, the config."""

    images: tuple[LabelledImage, ...]
    classes: ClassSet
    config: Config
    start: Place | None = None
    """Model file of this package to start from. None starts from random weights."""
    keep_statistics: bool = False
    """Whether BatchNorm keeps the statistics of `start`. Those of a few small crops are worse."""


def pretrain(task: PretrainingTask, run: Run, watch: Watch | None = None) -> None:
    """Train a network on labelled images, resuming from the run's newest checkpoint.

    Raises:
        TrainingError: the loss became NaN or Inf.
    """
    config = task.config.pretrain
    schedule = Schedule(config.num_steps, config.checkpoint_every, task.config.seed)
    run_loop(Pretraining(task, run, watch), run, schedule)


class Pretraining:
    """A `Trainable` with one network."""

    def __init__(self, task: PretrainingTask, run: Run, watch: Watch | None = None):
        torch.manual_seed(task.config.seed)
        self.task, self.run, self.watch = task, run, watch
        self.config = task.config.pretrain
        if task.start:
            self.network = load_model(task.start, run.device).network
        else:
            network = build_network(self.config.network, len(task.classes))
            self.network = network.to(run.device)
        self.optimizer = build_optimizer(self.network.body, self.network.heads, self.config.optim)
        max_grad_norm = self.config.optim.max_grad_norm
        self.learner = Learner(self.network, self.optimizer, max_grad_norm)
        augment = fit_crop(self.config.augment, self.network.size_multiple)
        self.samples = LabelledSamples(task.images, augment, task.config.seed)

    def initialize(self) -> None:
        """Do nothing: the network has its first weights already."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore network and optimiser."""
        self.network.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of network and optimiser."""
        return {"student": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def distribute(self) -> None:
        """Wrap the network for several workers."""
        module = distribute(self.network, self.run)
        self.learner = dataclasses.replace(self.learner, module=module)

    def batches(self, start: int) -> Iterable[Batch]:
        """Return this worker's labelled crops of the steps after `start`."""
        config = self.config
        share = share_of(self.run, config)
        processes = self.task.config.compute.loader_processes
        return step_loader(
            self.samples, start, config.num_steps, config.batch_size, share, processes
        )

    def step(self, batch: Batch, context: StepContext) -> Metrics:
        """Take one optimiser step on the cross entropy of a batch."""
        config = self.config
        # The evaluation left the network in eval mode.
        set_batch_norm(self.learner.module, "frozen" if self.task.keep_statistics else "adapt")
        rate = learning_rate(context.step, config.num_steps, config.optim)
        set_learning_rate(self.optimizer, rate)
        parts = split_batch(batch, config.accumulate)
        metrics = self.learner.update(parts, self._loss, context)
        average_buffers(self.network)
        return metrics

    def evaluate(self, step: int) -> dict[str, float]:
        """Return the watch's scores of the network."""
        return self.watch(self.network.eval()) if self.watch else {}

    def _loss(self, _index: int, part: Batch) -> tuple[Tensor, Metrics]:
        """Return the mean cross entropy over the labelled pixels of all workers.

        DDP averages gradients over W workers, so the local sum is multiplied by W.
        """
        labels = part["labels"]
        valid = (labels != IGNORE_INDEX).float()
        with autocast(self.run, self.config.precision):
            output = self.learner.module(part["image"])
            logits = self.network.upsample(output.logits, labels.shape[-2:])
        pixels = sum_over_workers(valid.sum()).clamp(min=1)
        loss = segmentation_loss(logits, labels, valid) * world_size() / pixels
        return loss, {"loss": loss.detach()}
