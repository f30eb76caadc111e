"""Supervised training of a source model: plain torch, any `Run`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfss_ray.config import Config
from sfss_ray.data.class_sets import IGNORE_INDEX, ClassSet
from sfss_ray.data.folders import LabelledImage
from sfss_ray.method.collective import average_buffers, sum_over_workers, world_size
from sfss_ray.method.losses import segmentation_loss
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.model_file import load_model
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.train.loop import (
    autocast,
    build_optimizer,
    distribute,
    learn,
    learning_rate,
    parts_of,
    run_steps,
    set_learning_rate,
    share_of,
)
from sfss_ray.train.run_state import Run
from sfss_ray.train.samples import LabelledSamples, step_loader

Watch = Callable[[Segmenter], dict[str, float]]
"""Looks at the network now and then; what it sees is reported, never learnt from."""


@dataclass(frozen=True)
class PretrainingTask:
    """All that training is given: labelled images, their classes, the config."""

    images: tuple[LabelledImage, ...]
    classes: ClassSet
    config: Config
    start: Path | None = None
    """A model file of this package to go on from; random weights without it."""


def pretrain(task: PretrainingTask, run: Run, watch: Watch | None = None) -> None:
    """Train a network with cross entropy on labelled images."""
    config = task.config.pretrain
    torch.manual_seed(task.config.seed)
    if task.start:
        network = load_model(task.start, run.device).network
    else:
        network = build_network(config.network, len(task.classes)).to(run.device)
    optimizer = build_optimizer(network.body, network.heads, config.optim)
    saved = run.resume_state()
    if saved:
        network.load_state_dict(saved["student"])
        optimizer.load_state_dict(saved["optimizer"])
    start = saved["step"] if saved else 0
    samples = LabelledSamples(task.images, config.augment, task.config.seed)
    loader = step_loader(
        samples,
        start,
        config.num_steps,
        config.batch_size,
        share_of(run, config.accumulate),
        task.config.compute.loader_processes,
    )
    module = distribute(network, run)
    last_saved = [start]

    def loss_of(_: int, part: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        labels = part["labels"]
        valid = (labels != IGNORE_INDEX).float()
        with autocast(run, config.precision):
            logits = network.upsample(module(part["image"]).logits, labels.shape[-2:])
        pixels = sum_over_workers(valid.sum()).clamp(min=1)
        loss = segmentation_loss(logits, labels, valid) * world_size() / pixels
        return loss, {"loss": loss.detach()}

    def take_step(step: int, batch: dict[str, Any]) -> dict[str, Tensor]:
        module.train()
        set_learning_rate(optimizer, learning_rate(step, config.num_steps, config.optim))
        clip = config.optim.max_grad_norm
        parts = parts_of(batch, config.accumulate)
        seen = learn(parts, loss_of, module, optimizer, clip, step, last_saved[0])
        average_buffers(network)
        return seen

    def observe() -> dict[str, float]:
        return watch(network.eval()) if watch else {}

    def state(step: int) -> dict[str, Any]:
        last_saved[0] = step
        weights = {"student": network.state_dict(), "optimizer": optimizer.state_dict()}
        return weights | {"step": step}

    run_steps(
        run,
        task.config.seed,
        loader,
        start,
        config.num_steps,
        config.checkpoint_every,
        take_step,
        observe,
        state,
    )
