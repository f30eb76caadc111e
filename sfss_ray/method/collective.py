"""Sums, means and gathers over the workers of a training. For one worker they change nothing."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Return the number of workers, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_workers(values: Tensor) -> Tensor:
    """Return the elementwise sum over the workers, the same on each of them."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def global_mean(total: Tensor, weight: Tensor) -> Tensor:
    """Return W * total / (sum of weights over the W workers), 0 where all weights are 0.

    DDP averages gradients over the workers. The average of these W terms is the weighted mean over the
    whole batch, whatever each worker's share of the weight.

    Args:
        total: This worker's weighted sum, with its graph.
        weight: Of the same shape, this worker's sum of weights.
    """
    weight_of_all = sum_over_workers(weight.detach())
    mean = total * world_size() / weight_of_all.clamp(min=1e-6)
    return torch.where(weight_of_all > 0, mean, 0.0 * total)


def mean_over_workers(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Return the mean of each value over the workers.

    Args:
        values: The same names on every worker.
        device: Device that the workers communicate through.
    """
    if world_size() == 1:
        return values
    total = sum_over_workers(
        torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    )
    return dict(zip(values, (total / world_size()).tolist(), strict=True))


def gather_rows(rows: Tensor, through: torch.device) -> Tensor:
    """Concatenate all workers' rows (n_r, ...) in the order of ranks. No gradient.

    Args:
        rows: Any number per worker, also none. The other dimensions are the same everywhere.
        through: Device that the workers communicate through.

    Returns:
        (sum of n_r, ...) on the device of `rows`.
    """
    world = world_size()
    if world == 1:
        return rows
    home, rows = rows.device, rows.to(through)
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(world)]
    dist.all_gather(counts, count)
    longest = int(torch.stack(counts).max())
    # Gathered tensors must agree in shape, so each is padded to the longest and cut again.
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.zeros_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, counts, strict=True)]).to(home)


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Replace floating-point buffers (BatchNorm statistics) by their mean over the workers."""
    world = world_size()
    if world > 1:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= world
