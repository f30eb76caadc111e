"""The student of the result: an average of the adapted weights and those of the source model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sfss_ray.models.segmenter import Segmenter


@torch.no_grad()
def average_weights(
    student: Mapping[str, Tensor], source: Mapping[str, Tensor], source_share: float
) -> dict[str, Tensor]:
    """Return (1 - source_share) * student + source_share * source, by name.

    Both networks lie in one basin of the loss, because the student starts from the source model. So the
    average keeps what the student learned, and much of what it forgot: rare classes of which
    pseudo-labels are few. After WiSE-FT (Wortsman et al., CVPR 2022), which averages fine-tuned
    classifiers with their zero-shot start.

    Args:
        student: Weights and BatchNorm statistics by name.
        source: The same of the source model, on any device.
        source_share: 0 to 1. 0 returns the student's own tensors.
    """
    if source_share == 0:
        return dict(student)
    return {
        name: tensor.lerp(source[name].to(tensor.device, tensor.dtype), source_share)
        if tensor.is_floating_point()
        else tensor  # BatchNorm's counts of batches
        for name, tensor in student.items()
    }


@contextlib.contextmanager
def averaged_with(
    source: Mapping[str, Tensor], student: Segmenter, source_share: float
) -> Iterator[None]:
    """Give a network its average with the source model for a `with` block, and its own weights after it.

    The weights are exchanged in place, because a user's module may hold tensors that cannot be copied.
    """
    if source_share == 0:
        yield
        return
    alone = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    student.load_state_dict(average_weights(alone, source, source_share))
    try:
        yield
    finally:
        student.load_state_dict(alone)
