"""Copies between the CPU and the networks' device, none of which waits for the GPU's whole queue.

Copies go through memory that is pinned: one of more than 64 KB from or to other memory would be made
step by step by this thread, after everything that the GPU was given before. Small values go together,
as for them it is the number of copies that takes time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def send_arrays(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Arrays where the networks are, in one copy; on a CPU tensors of the same memory.

    On a GPU they are safe though the arrays may be changed or freed at once: they are copied before the
    call returns, and PyTorch keeps the copy until the GPU has read it.
    """
    tensors = [torch.from_numpy(array) for array in arrays]
    if device.type == "cpu":
        return tensors
    packed = pack(tensors)
    if device.type == "cuda":
        packed = packed.pin_memory()
    return unpack(packed.to(device, non_blocking=True), tensors)


class Fetched:
    """Values on their way to the CPU. Whoever wants them waits for the work that the GPU had been given
    before they were asked for, and not for what came after.
    """

    def __init__(self, *values: Tensor):
        self._values = list(values)
        self._there = None
        places = [k for k, value in enumerate(values) if value.is_cuda]
        if not places:
            return
        away = [values[k].detach() for k in places]
        packed = pack(away)
        here = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
        here.copy_(packed, non_blocking=True)
        for place, value in zip(places, unpack(here, away), strict=True):
            self._values[place] = value
        self._there = torch.cuda.Event()
        self._there.record()

    def wait(self) -> list[Tensor]:
        """The values, on the CPU."""
        if self._there is not None:
            self._there.synchronize()
        return self._values


def pack(values: Sequence[Tensor]) -> Tensor:
    """(bytes,) of values of one device, the widest numbers first: each begins where it may."""
    return torch.cat([v.contiguous().view(-1).view(torch.uint8) for _, v in _by_width(values)])


def unpack(packed: Tensor, values: Sequence[Tensor]) -> list[Tensor]:
    """What was packed: tensors of the types and shapes of `values`, in their order."""
    order = _by_width(values)
    parts = packed.split([value.numel() * value.element_size() for _, value in order])
    found = {
        place: part.view(value.dtype).view(value.shape)
        for (place, value), part in zip(order, parts, strict=True)
    }
    return [found[place] for place in range(len(values))]


def _by_width(values: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
    return sorted(enumerate(values), key=lambda item: -item[1].element_size())
