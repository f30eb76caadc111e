"""Adaptation of a source model to unlabelled target images, in plain PyTorch on any `Run`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sfss_ray.config import Config, TrainConfig
from sfss_ray.data.augment import fit_crop
from sfss_ray.data.folders import ImageFile
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.concepts.score_maps import ConceptScores
from sfss_ray.method.collective import average_buffers
from sfss_ray.method.contrast_net import ContrastNet
from sfss_ray.method.step import Memory, StepInfo, TeacherStudent, adaptation_losses
from sfss_ray.method.teacher import frozen_copy, update_teacher, warm_up_momentum
from sfss_ray.models.model_file import SourceModel, load_model
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.models.user_code.carried_module import CarriedModule
from sfss_ray.storage.places import Place
from sfss_ray.train.batch_norm import NORM_LAYERS, read_statistics, set_batch_norm
from sfss_ray.train.best_student import BestStudent, copy_weights
from sfss_ray.train.data_parallel import distribute, share_of
from sfss_ray.train.gradients import Batch, Learner, Metrics, StepContext, split_batch
from sfss_ray.train.loop import Schedule, run_loop
from sfss_ray.train.norm_choice import StatisticsImages, set_initial_statistics
from sfss_ray.train.optimizer import build_optimizer, learning_rate, set_learning_rate
from sfss_ray.train.run_state import STATISTICS_FILE, Run
from sfss_ray.train.samples import TargetSamples, step_loader
from sfss_ray.train.weight_average import averaged_with

Watch = Callable[[Segmenter, Segmenter], dict[str, float]]
"""Scores student and teacher at each checkpoint. The scores are reported and never used for training."""


@dataclass(frozen=True)
class AdaptationTask:
    """The inputs of an adaptation: a source model, unlabelled images, their masks, the config."""

    source_model: Place
    images: tuple[ImageFile, ...]
    masks: Path | str
    config: Config
    architecture: CarriedModule | None = None
    """The source model's module without weights, where it is the user's own."""
    held_out: tuple[ImageFile, ...] = ()
    """Target images that are never trained on. BatchNorm statistics are compared on them."""
    concepts: str = ""
    """Folder of masks with classes; empty without them."""

    def load_source(self, device: torch.device) -> SourceModel:
        """Load the source model onto a device."""
        module = self.architecture.module if self.architecture else None
        return load_model(self.source_model, device, module=module)


def adapt_student(task: AdaptationTask, run: Run, watch: Watch | None = None) -> None:
    """Train the student for `num_steps`, resuming from the run's newest checkpoint.

    Batches, augmentation and pair sampling are functions of (seed, sample number), so an interrupted
    run ends exactly as an uninterrupted one.

    Raises:
        TrainingError: the loss became NaN or Inf.
    """
    config = task.config.train
    schedule = Schedule(config.num_steps, config.evaluate_every, task.config.seed)
    run_loop(Adaptation(task, run, watch), run, schedule)


class Adaptation:
    """A `Trainable` with a student, a teacher and the memory of the contrast."""

    def __init__(self, task: AdaptationTask, run: Run, watch: Watch | None = None):
        torch.manual_seed(task.config.seed)
        self.task, self.run, self.watch = task, run, watch
        self.config = config = settled_config(task)
        source = task.load_source(run.device)
        self.source_share = config.share_of_source(len(task.images))
        self.source_weights = copy_weights(source.network) if self.source_share > 0 else {}
        self.source = frozen_copy(source.network) if config.loss.source_vote > 0 else None
        self.student = build_student(source.network, config, run.device)
        self.teacher = frozen_copy(self.student)
        new_layers = [self.student.projection, self.student.mask_space]
        heads = [*self.student.segmenter.heads, *filter(None, new_layers)]
        self.optimizer = build_optimizer(self.student.segmenter.body, heads, config.optim)
        self.learner = Learner(self.student, self.optimizer, config.optim.max_grad_norm)
        embedding_dim = self.student.embedding_dim
        self.memory = Memory.empty(len(source.classes), embedding_dim, config, run.device)
        augment = fit_crop(config.augment, source.network.size_multiple)
        self.samples = TargetSamples(
            task.images,
            task.masks,
            augment,
            task.config.seed,
            with_geometry=config.loss.asks_neighbours,
            with_embeddings=config.loss.compares_embeddings,
        )
        if task.concepts and config.loss.concept_weight > 0:
            self.samples.concepts = ConceptScores(task.concepts, len(source.classes))
        self.best = BestStudent()

    def initialize(self) -> None:
        """Choose the BatchNorm statistics of student and teacher, and store them for the report."""
        self._estimate_statistics()
        if self.run.rank == 0:
            self.run.save(STATISTICS_FILE, read_statistics(self.student.segmenter))

    def _estimate_statistics(self) -> None:
        """Estimate BatchNorm statistics of the target for student and teacher."""
        # Every worker reads all images: statistics of a part of them would depend on the number of
        # workers.
        images = StatisticsImages(self.task.images, self.task.held_out)
        choice = set_initial_statistics(self.student.segmenter, images, self.task.config)
        update_teacher(self.teacher, self.student, momentum=0.0)
        if choice is not None and self.run.rank == 0:
            self.run.log({"step": 0, "num_steps": self.config.num_steps} | choice.as_record())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore student, teacher, optimiser, memory and the best student so far."""
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.memory.load_state_dict(state)
        self.best.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of student, teacher, optimiser, memory and the best student so far."""
        networks = {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        return networks | self.memory.state_dict() | self.best.state_dict()

    def distribute(self) -> None:
        """Wrap the student for several workers, and compile it if the config says so."""
        module = distribute(self.student, self.run)
        if self.config.compile:
            module = cast(nn.Module, torch.compile(module))  # shares the student's weights
        self.learner = replace(self.learner, module=module)

    def batches(self, start: int) -> Iterable[Batch]:
        """Return this worker's target crops of the steps after `start`."""
        config = self.config
        share = share_of(self.run, config)
        processes = self.task.config.compute.loader_processes
        return step_loader(
            self.samples, start, config.num_steps, config.batch_size, share, processes
        )

    def step(self, batch: Batch, context: StepContext) -> Metrics:
        """Take one optimiser step of the student, then let the teacher follow."""
        config = self.config
        set_batch_norm(self.student, config.batch_norm)  # the evaluation left it in eval mode
        rate = learning_rate(context.step, config.num_steps, config.optim)
        set_learning_rate(self.optimizer, rate)
        parts = split_batch(batch, config.accumulate)
        metrics = self.learner.update(parts, partial(self._losses, context.step), context)
        average_buffers(self.student)
        self._update_teacher(context.step)
        return metrics

    def evaluate(self, step: int) -> dict[str, float]:
        """Return the watch's scores of student and teacher, and keep them if they are the best.

        The student is scored as it would be delivered, with the source model's share.
        """
        student, teacher = self.student.segmenter.eval(), self.teacher.segmenter
        with averaged_with(self.source_weights, student, self.source_share):
            scores = self.watch(student, teacher) if self.watch else {}
        if self.config.keep == "best":
            self.best.offer(step, scores, self.student, self.teacher)
        return scores

    def _losses(self, step: int, index: int, part: Batch) -> tuple[Tensor, Metrics]:
        networks = TeacherStudent(
            self.learner.module, self.teacher, self.memory, self.student.mask_space, self.source
        )
        info = StepInfo(step, self.task.config.seed, first_part=index == 0)
        return adaptation_losses(networks, part, self.config, info)

    def _update_teacher(self, step: int) -> None:
        """Move the teacher towards the student."""
        momentum = self.config.ema_momentum
        update_teacher(self.teacher.segmenter, self.student.segmenter, momentum)
        # New layers start from random weights, which the teacher's average should forget soon.
        warm_up = warm_up_momentum(step, momentum)
        update_teacher(self.teacher.projection, self.student.projection, warm_up)
        if self.teacher.mask_space is not None and self.student.mask_space is not None:
            update_teacher(self.teacher.mask_space, self.student.mask_space, warm_up)


def settled_config(task: AdaptationTask) -> TrainConfig:
    """Return the config of a task, with the weight of neighbours chosen by its masks."""
    config = task.config.train
    if config.loss.neighbour_weight is not None:
        return config
    weight = config.loss.weight_of_neighbours(MaskStore(task.masks).has_embeddings)
    return replace(config, loss=replace(config.loss, neighbour_weight=weight))


def build_student(network: Segmenter, config: TrainConfig, device: torch.device) -> ContrastNet:
    """Return the source network with its projection head, in the config's memory layout."""
    student = ContrastNet(network, config).to(device)
    if config.channels_last:
        student = student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    choose_trainable(student, config.optim.trainable)
    return student


def choose_trainable(student: ContrastNet, trainable: str) -> None:
    """Freeze all weights but those of normalisation layers if `trainable` is "norm"."""
    if trainable == "norm":
        student.requires_grad_(False)
        for layer in student.modules():
            if isinstance(layer, NORM_LAYERS):
                layer.requires_grad_(True)
