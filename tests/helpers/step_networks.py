"""Student, teacher and memory that take single steps on drawn batches."""

import torch
from train_samples import CLASSES, colour_segmenter, drawn_batch, small_config

from sfss_ray.config import TrainConfig
from sfss_ray.method.contrast_net import ContrastNet
from sfss_ray.method.memory import Memory
from sfss_ray.method.step import StepInfo, TeacherStudent, adaptation_losses
from sfss_ray.method.teacher import frozen_copy
from sfss_ray.method.teacher_view import TeacherView, predict_teacher


class StepNetworks:
    """Networks whose class is the nearest colour; `changes` are those of `small_config`."""

    def __init__(self, **changes):
        torch.manual_seed(0)
        self.config: TrainConfig = small_config(**changes).train
        self.student = ContrastNet(colour_segmenter(), self.config)
        self.teacher = frozen_copy(self.student)
        embedding_dim = self.student.embedding_dim
        self.memory = Memory.empty(len(CLASSES), embedding_dim, self.config)

    def step(self, batch, step=6, seed=0):
        space = self.student.mask_space
        networks = TeacherStudent(self.student, self.teacher, self.memory, space)
        return adaptation_losses(networks, batch, self.config, StepInfo(step, seed))

    def gradients(self, batch, **info) -> list[torch.Tensor]:
        self.student.zero_grad(set_to_none=True)
        self.step(batch, **info)[0].backward()
        return [p.grad.clone() for p in self.student.parameters()]

    def view(self, weak: torch.Tensor) -> TeacherView:
        """Return the teacher's view of images without masks."""
        ids = torch.zeros(len(weak), *weak.shape[-2:], dtype=torch.long)
        batch = {"weak": weak, "mask_ids": ids}
        return predict_teacher(self.teacher, batch, self.memory, self.config.loss)


def quadrants() -> dict[str, torch.Tensor]:
    """Return a batch of one image with four quadrants, each of its own class."""
    batch = drawn_batch([0])
    labels = torch.tensor([[0, 1], [2, 3]]).repeat_interleave(32, 0).repeat_interleave(32, 1)
    colours = torch.tensor([[220, 40, 40], [40, 200, 60], [40, 60, 220], [220, 210, 50]]) / 255.0
    image = colours[labels].permute(2, 0, 1)[None]
    return batch | {"weak": image, "strong": image * 0.9, "mask_ids": labels[None] + 1}
