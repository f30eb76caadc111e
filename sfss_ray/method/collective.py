"""Sums and gathers over the workers of a training run; the identity for one worker."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Number of workers; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_workers(values: Tensor) -> Tensor:
    """Elementwise sum; the same on every worker."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def mean_over_workers(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """The mean of each value; `device` is what workers talk through."""
    if world_size() == 1:
        return values
    total = sum_over_workers(
        torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    )
    return dict(zip(values, (total / world_size()).tolist(), strict=True))


def gather_rows(rows: Tensor, through: torch.device) -> Tensor:
    """All workers' rows (n_r, ...) one below the other, in the order of ranks. No gradient.

    They come back to where they are; `through` is the device that workers talk through.
    """
    world = world_size()
    if world == 1:
        return rows
    home, rows = rows.device, rows.to(through)
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(world)]
    dist.all_gather(counts, count)
    most = int(torch.stack(counts).max())
    # Gathered tensors must agree in shape, so each is filled up to the longest and cut again.
    padded = rows.new_zeros((most, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.zeros_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, counts, strict=True)]).to(home)


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Make floating-point buffers (BatchNorm statistics) the mean over workers."""
    world = world_size()
    if world > 1:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= world
