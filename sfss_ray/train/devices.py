"""Copies between the CPU and the networks' device, none of which waits for the GPU's whole queue.

Copies go through memory that is pinned: one of more than 64 KB from or to other memory would be made
step by step by this thread, after everything that the GPU was given before.
"""

from __future__ import annotations

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """Values of the CPU where the networks are.

    Safe though the values may be freed at once: they are copied before the call returns, and PyTorch
    keeps the copy until the GPU has read it.
    """
    if device.type == "cuda" and not values.is_cuda:
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


class Fetched:
    """Values on their way to the CPU. Whoever wants them waits for the work that the GPU had been given
    before they were asked for, and not for what came after.
    """

    def __init__(self, *values: Tensor):
        self._values = [_on_its_way(value) for value in values]
        self._there = None
        if any(value.is_cuda for value in values):
            self._there = torch.cuda.Event()
            self._there.record()

    def wait(self) -> list[Tensor]:
        """The values, on the CPU."""
        if self._there is not None:
            self._there.synchronize()
        return self._values


def _on_its_way(value: Tensor) -> Tensor:
    if not value.is_cuda:
        return value
    there = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    return there.copy_(value.detach(), non_blocking=True)
