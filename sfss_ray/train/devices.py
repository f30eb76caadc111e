"""Copies between the CPU and the networks' device."""

from __future__ import annotations

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """Values of the CPU where the networks are, without waiting for the GPU to be done with its queue.

    Safe though the values may be freed at once: CUDA has taken memory that is not pinned away before
    the call returns.
    """
    return values.to(device, non_blocking=True)
