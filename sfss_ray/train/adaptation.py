"""The adaptation of a student, from its task to its last step: plain torch, any `Run`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sfss_ray.config import Config, TrainConfig
from sfss_ray.data.folders import ImageFile
from sfss_ray.method.collective import average_buffers
from sfss_ray.method.mask_vote import ClassPrior
from sfss_ray.method.prototype_bank import PrototypeBank
from sfss_ray.method.pseudo_labels import ClassThresholds
from sfss_ray.method.step import ContrastNet, Memory, adaptation_losses
from sfss_ray.method.teacher import make_teacher, update_teacher, warm_up_momentum
from sfss_ray.models.model_file import SourceModel, load_model
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.models.user_code.carried_module import CarriedModule
from sfss_ray.train.loop import (
    build_optimizer,
    distribute,
    learn,
    learning_rate,
    parts_of,
    run_steps,
    set_learning_rate,
    share_of,
    to_device,
    too_few_for_batch_norm,
)
from sfss_ray.train.run_state import Run
from sfss_ray.train.samples import TargetSamples, step_loader

NORM_LAYERS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)

Watch = Callable[[Segmenter, Segmenter], dict[str, float]]
"""Looks at student and teacher now and then; what it sees is reported, never learnt from."""


@dataclass(frozen=True)
class AdaptationTask:
    """All that training is given: a source model, unlabelled images, their masks, the config."""

    source_model: Path
    images: tuple[ImageFile, ...]
    masks: Path | str
    config: Config
    architecture: CarriedModule | None = None
    """The source model's module without weights, where it is the user's own."""

    def load_source(self, device: torch.device) -> SourceModel:
        """The source model on a device."""
        module = self.architecture.module if self.architecture else None
        return load_model(self.source_model, device, module=module)


@dataclass
class _Players:
    """The moving parts of a run."""

    student: ContrastNet
    teacher: ContrastNet
    optimizer: torch.optim.Optimizer
    memory: Memory

    def state(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "thresholds": self.memory.thresholds.histogram,
            "prior": self.memory.prior.total,
            "bank": self.memory.bank.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> int:
        """Take over a saved state; returns its step."""
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.memory.thresholds.histogram.copy_(state["thresholds"])
        self.memory.prior.total.copy_(state["prior"])
        self.memory.bank.load_state_dict(state["bank"])
        return state["step"]


def adapt_student(task: AdaptationTask, run: Run, watch: Watch | None = None) -> None:
    """Train the student for `num_steps`, going on from the run's saved state where there is one.

    Batches, augmentation and pair sampling are functions of (seed, sample number), so a run that was
    interrupted ends as an uninterrupted one does.
    """
    config = task.config.train
    torch.manual_seed(task.config.seed)
    source = task.load_source(run.device)
    players = _players(source, config, run.device)
    samples = TargetSamples(task.images, task.masks, config.augment, task.config.seed)
    loader_processes = task.config.compute.loader_processes
    saved = run.resume_state()
    start = players.load(saved) if saved else 0
    if saved is None and config.batch_norm != "frozen":
        # Every worker looks at whole batches: the variance of a batch is more than the mean of its
        # parts' variances, so workers with a part each would start from other statistics than one.
        whole = step_loader(samples, 0, config.statistics_steps, config.batch_size)
        estimate_statistics(
            players.student.segmenter.train(),
            (to_device(b, run.device)["weak"] for b in whole),
            config.statistics_share,
        )
        update_teacher(players.teacher, players.student, 0.0)
    loader = step_loader(
        samples,
        start,
        config.num_steps,
        config.batch_size,
        share_of(run, config.accumulate),
        loader_processes,
    )
    module = distribute(players.student, run)
    if config.compile:
        module = cast(nn.Module, torch.compile(module))  # shares the student's weights
    last_saved = [start]

    def take_step(step: int, batch: dict[str, Any]) -> dict[str, Tensor]:
        set_batch_norm(players.student, config.batch_norm)  # watching puts it in eval mode
        set_learning_rate(players.optimizer, learning_rate(step, config.num_steps, config.optim))

        def loss_of(number: int, part: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
            return adaptation_losses(
                module,
                players.teacher,
                players.student.segmenter,
                players.memory,
                part,
                config,
                step,
                task.config.seed,
                new_step=number == 0,
            )

        clip = config.optim.max_grad_norm
        parts = parts_of(batch, config.accumulate)
        seen = learn(parts, loss_of, module, players.optimizer, clip, step, last_saved[0])
        average_buffers(players.student)
        _follow(players, config, step)
        return seen

    def observe() -> dict[str, float]:
        student, teacher = players.student.segmenter.eval(), players.teacher.segmenter
        return watch(student, teacher) if watch else {}

    def state(step: int) -> dict[str, Any]:
        last_saved[0] = step
        return players.state(step)

    run_steps(
        run,
        task.config.seed,
        loader,
        start,
        config.num_steps,
        config.evaluate_every,
        take_step,
        observe,
        state,
    )


def _players(source: SourceModel, config: TrainConfig, device: torch.device) -> _Players:
    student = ContrastNet(source.network, config)
    student = student.to(device)
    if config.channels_last:
        student = student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    choose_trainable(student, config.optim.trainable)
    heads = [*student.segmenter.heads, student.projection]
    classes = len(source.classes)
    return _Players(
        student,
        make_teacher(student),
        build_optimizer(student.segmenter.body, heads, config.optim),
        Memory(
            ClassThresholds(classes, device),
            ClassPrior(classes, device),
            PrototypeBank(classes, config.pairs.bank_size, student.embedding_dim, device),
        ),
    )


def choose_trainable(student: ContrastNet, which: str) -> None:
    """With `norm` all weights but those of normalisation layers are fixed."""
    if which == "norm":
        student.requires_grad_(False)
        for layer in student.modules():
            if isinstance(layer, NORM_LAYERS):
                layer.requires_grad_(True)


def _follow(players: _Players, config: TrainConfig, step: int) -> None:
    """Teacher after student; a projection head that started from random weights warms up."""
    update_teacher(players.teacher.segmenter, players.student.segmenter, config.ema_momentum)
    warm = warm_up_momentum(step, config.ema_momentum)
    update_teacher(players.teacher.projection, players.student.projection, warm)


def set_batch_norm(module: nn.Module, mode: str) -> None:
    """Training mode; but for `adapt` BatchNorm layers keep using the statistics they have."""
    module.train()
    if mode != "adapt":
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()


@torch.no_grad()
def estimate_statistics(network: Segmenter, images, share: float = 1.0) -> None:
    """Replace BatchNorm statistics by their mean over batches of target images (B, 3, H, W).

    With a `share` below 1 they are that share of the target's and the rest of what they were.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    batches = iter(images)
    first = next(batches, None)
    if first is None or not layers:
        return
    before = [[value.clone() for value in _statistics(layer)] for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative mean
    with too_few_for_batch_norm():
        network(first)
        for batch in batches:
            network(batch)
    for layer, momentum, old in zip(layers, momenta, before, strict=True):
        layer.momentum = momentum
        if share < 1:
            for value, was in zip(_statistics(layer), old, strict=True):
                value.lerp_(was, 1 - share)
    average_buffers(network)


def _statistics(layer: nn.modules.batchnorm._BatchNorm) -> list[Tensor]:
    return [s for s in (layer.running_mean, layer.running_var) if s is not None]
