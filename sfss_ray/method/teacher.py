"""The teacher: an exponential moving average of the student."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def frozen_copy(network: Network) -> Network:
    """Return a copy of a network that takes no gradient, in eval mode."""
    return copy.deepcopy(network).requires_grad_(False).eval()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Update weights and BatchNorm statistics in place, in float32.

        teacher = momentum * teacher + (1 - momentum) * student

    Statistics belong to the weights that produced them, so they follow as slowly as the weights do
    (exponential moving average normalization, Cai et al. 2021). Statistics of a fast student under the
    weights of a slow teacher ruin its predictions.

    Args:
        teacher: A copy of the student.
        student: Of the same layers.
        momentum: 0 to 1; 0 copies the student, 1 leaves the teacher unchanged.
    """
    pairs = _paired_tensors(teacher, student)
    for dtype in {old.dtype for old, _ in pairs}:
        olds, news = zip(*(pair for pair in pairs if pair[0].dtype == dtype), strict=True)
        # The foreach functions launch one kernel on a GPU, instead of one per tensor.
        if dtype.is_floating_point:
            torch._foreach_lerp_(olds, news, 1.0 - momentum)  # pyright: ignore[reportPrivateImportUsage]
        else:  # BatchNorm's counts of batches
            torch._foreach_copy_(olds, news)  # pyright: ignore[reportPrivateImportUsage]


def _paired_tensors(teacher: nn.Module, student: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return parameters and buffers of the teacher, each with the student's."""
    old, new = ([*m.parameters(), *m.buffers()] for m in (teacher, student))
    if len(old) != len(new):
        raise ValueError(
            f"the teacher has {len(old)} tensors and the student {len(new)}: make the teacher with"
            " frozen_copy(student)"
        )
    return [(a.detach(), b.detach()) for a, b in zip(old, new, strict=True)]


def warm_up_momentum(step: int, momentum: float) -> float:
    """Return min(1 - 1 / (step + 1), momentum), for layers that start from random weights.

    Pretrained layers must not use it: it would leave them only 1 / steps of the source model.
    """
    return min(1.0 - 1.0 / (step + 1), momentum)
