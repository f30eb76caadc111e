"""A training step outside a run: its losses, and their gradients, always from the same weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from ablation_rows import VOTE
from domain_pairs import DomainPair
from torch import Tensor

from sfss_ray.config import TrainConfig, override
from sfss_ray.data.folders import ImageFile
from sfss_ray.method.contrast_net import ContrastNet
from sfss_ray.method.memory import Memory
from sfss_ray.method.step import StepInfo, TeacherStudent, adaptation_losses
from sfss_ray.method.teacher import frozen_copy
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.train.adaptation import build_student
from sfss_ray.train.batch_norm import set_batch_norm
from sfss_ray.train.samples import TargetSamples, step_loader

_STEPS = 1000
"""Of the run that the step would belong to. Its last one comes after the ramp."""


class StudyStep:
    """Self-training with the vote and some extra losses, with a network that nobody updates.

    Args:
        pair: Its images are the target, where `images` does not name some of them.
        network: The source model, which is copied.
        regions: Source of the masks. The vote has the pair's settings for it.
        knobs: Settings of `train.loss` that differ, without that prefix.
        images: Target images.
        num_batches: Steps that can be taken.
    """

    def __init__(
        self,
        pair: DomainPair,
        network: Segmenter,
        regions: str,
        knobs: dict[str, Any],
        images: Sequence[ImageFile] = (),
        num_batches: int = _STEPS,
    ):
        torch.manual_seed(0)
        off = {"train.loss.contrast_weight": 0.0, "train.num_steps": _STEPS}
        named = {f"train.loss.{name}": value for name, value in knobs.items()}
        config = override(pair.config, {**VOTE, **pair.votes.get(regions, {})} | off | named)
        self.config: TrainConfig = config.train
        self.student = build_student(copy.deepcopy(network), config.train, torch.device("cpu"))
        set_batch_norm(self.student, self.config.batch_norm)
        self.teacher: ContrastNet = frozen_copy(self.student)
        self.memory = Memory.empty(len(pair.classes), self.student.embedding_dim, self.config)
        samples = TargetSamples(
            images or pair.images,
            pair.masks(regions),
            self.config.augment,
            config.seed,
            with_geometry=self.config.loss.asks_neighbours,
            with_embeddings=self.config.loss.neighbour_space == "sam",
        )
        self._batches = iter(step_loader(samples, 0, num_batches, self.config.batch_size))

    def loss(self) -> Tensor:
        """Return the loss of the next batch, as in a step after the ramp."""
        batch = next(self._batches)
        batch = batch | {name: batch[name].float() / 255 for name in ("weak", "strong")}
        networks = TeacherStudent(self.student, self.teacher, self.memory, self.student.mask_space)
        return adaptation_losses(networks, batch, self.config, StepInfo(_STEPS, 0))[0]

    @torch.no_grad()
    def fill_memory(self, batches: int) -> None:
        """Let some batches update thresholds, prior, bank and neighbours."""
        for _ in range(batches):
            self.loss()

    def gradient(self) -> Tensor:
        """Return the gradient of the backbone's weights for the next batch, as one vector."""
        self.student.zero_grad(set_to_none=True)
        self.loss().backward()
        body = self.student.segmenter.body.parameters()
        return torch.cat([p.grad.flatten() for p in body if p.grad is not None])
