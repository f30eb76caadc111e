"""Copies between the CPU and the networks' device that do not wait for the GPU's whole queue.

Copies go through pinned memory. A copy of more than 64 KB from or to other memory would be made by this
thread, after all work that was queued on the GPU before. Small values are copied together, because for
them the number of copies takes the time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def send_arrays(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Return the arrays as tensors on a device, sent in one copy.

    On a CPU the tensors share the arrays' memory. For a GPU the arrays are copied before this returns,
    so they may be changed or freed at once. PyTorch keeps the copy until the GPU has read it.
    """
    tensors = [torch.from_numpy(array) for array in arrays]
    if device.type == "cpu":
        return tensors
    packed = pack(tensors)
    if device.type == "cuda":
        packed = packed.pin_memory()
    return unpack(packed.to(device, non_blocking=True), tensors)


class Fetched:
    """Tensors on their way to the CPU.

    `wait` waits for the work that the GPU was given before this object was made, not for later work.
    """

    def __init__(self, *tensors: Tensor):
        self._tensors = list(tensors)
        self._copied: torch.cuda.Event | None = None
        indices = [index for index, tensor in enumerate(tensors) if tensor.is_cuda]
        if not indices:
            return
        on_gpu = [tensors[index].detach() for index in indices]
        packed = pack(on_gpu)
        on_cpu = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
        on_cpu.copy_(packed, non_blocking=True)
        for index, tensor in zip(indices, unpack(on_cpu, on_gpu), strict=True):
            self._tensors[index] = tensor
        self._copied = torch.cuda.Event()
        self._copied.record()

    def wait(self) -> list[Tensor]:
        """Return the tensors on the CPU, once they are copied."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensors


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """Join tensors of one device into bytes (N,), the widest types first so that each is aligned."""
    return torch.cat([t.contiguous().view(-1).view(torch.uint8) for _, t in _by_width(tensors)])


def unpack(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return the packed tensors, with the types, shapes and order of `like`."""
    order = _by_width(like)
    parts = packed.split([tensor.numel() * tensor.element_size() for _, tensor in order])
    by_index = {
        index: part.view(tensor.dtype).view(tensor.shape)
        for (index, tensor), part in zip(order, parts, strict=True)
    }
    return [by_index[index] for index in range(len(like))]


def _by_width(tensors: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
    return sorted(enumerate(tensors), key=lambda pair: -pair[1].element_size())
