"""The teacher: an exponential moving average of the student."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def make_teacher(student: Network) -> Network:
    """A copy of the student that takes no gradient and stays in eval mode."""
    return copy.deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, in float32, for weights and BatchNorm
    statistics.

    Statistics belong to the weights that they were seen with, so they follow as the weights do (Cai et
    al. 2021, exponential moving average normalization). Those of a student that learns fast, under the
    weights of a teacher that follows slowly, make it see nothing.
    """
    pairs = _tensors_of_both(teacher, student)
    for kind in {old.dtype for old, _ in pairs}:
        olds, news = zip(*(pair for pair in pairs if pair[0].dtype == kind), strict=True)
        # On a GPU one kernel in all, not one per tensor.
        if kind.is_floating_point:
            torch._foreach_lerp_(olds, news, 1.0 - momentum)  # pyright: ignore[reportPrivateImportUsage]
        else:  # numbers of batches seen
            torch._foreach_copy_(olds, news)  # pyright: ignore[reportPrivateImportUsage]


def _tensors_of_both(teacher: nn.Module, student: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Parameters and buffers of each, side by side."""
    old, new = ([*m.parameters(), *m.buffers()] for m in (teacher, student))
    if len(old) != len(new):
        raise ValueError(f"a teacher of {len(old)} tensors cannot follow a student of {len(new)}")
    return [(a.detach(), b.detach()) for a, b in zip(old, new, strict=True)]


def warm_up_momentum(step: int, momentum: float) -> float:
    """min(1 - 1 / (step + 1), momentum): only for layers that start from random weights.

    For pretrained weights it would keep 1 / steps of the source model, and is never used.
    """
    return min(1.0 - 1.0 / (step + 1), momentum)
