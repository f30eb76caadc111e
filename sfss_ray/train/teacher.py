"""The teacher: an exponential moving average of the student."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def make_teacher(student: Network) -> Network:
    """A copy of the student that takes no gradient and stays in eval mode."""
    return copy.deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, for weights, in float32.

    Buffers (BatchNorm statistics) are copied: they are an average over steps already, and a second
    one would lag behind the target domain.
    """
    old = [p.detach() for p in teacher.parameters()]
    new = [p.detach() for p in student.parameters()]
    if len(old) != len(new):
        raise ValueError(f"a teacher of {len(old)} tensors cannot follow a student of {len(new)}")
    if old:
        # On a GPU one kernel in all, not one per tensor.
        torch._foreach_lerp_(old, new, 1.0 - momentum)  # pyright: ignore[reportPrivateImportUsage]
    for kind in {buffer.dtype for buffer in teacher.buffers()}:
        old = [buffer for buffer in teacher.buffers() if buffer.dtype == kind]
        new = [buffer for buffer in student.buffers() if buffer.dtype == kind]
        torch._foreach_copy_(old, new)  # pyright: ignore[reportPrivateImportUsage]


def warm_up_momentum(step: int, momentum: float) -> float:
    """min(1 - 1 / (step + 1), momentum): only for layers that start from random weights.

    For pretrained weights it would keep 1 / steps of the source model, and is never used.
    """
    return min(1.0 - 1.0 / (step + 1), momentum)
