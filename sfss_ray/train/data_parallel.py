"""Data-parallel training: wrapping a network for several workers, and moving batches to the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sfss_ray.config import PretrainConfig, TrainConfig
from sfss_ray.config.worker_shares import share_unit
from sfss_ray.models.user_code.layers import torch_methods
from sfss_ray.train.run_state import Run
from sfss_ray.train.samples import Share


def distribute(module: nn.Module, run: Run) -> nn.Module:
    """Wrap a module in DistributedDataParallel, unless there is only one worker.

    On GPUs BatchNorm layers become SyncBatchNorm. Buffers are not broadcast, because each step
    averages BatchNorm statistics over the workers instead.
    """
    if run.world == 1:
        return module
    # A user's module may hide methods of nn.Module behind attributes, but DDP needs the originals.
    with torch_methods(module):
        if run.device.type != "cuda":
            return DistributedDataParallel(module, broadcast_buffers=False)
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return DistributedDataParallel(module, [run.device.index or 0], broadcast_buffers=False)


def share_of(run: Run, stage: TrainConfig | PretrainConfig) -> Share:
    """Return this worker's share of each batch of a training."""
    return Share(run.rank, run.world, stage.accumulate, share_unit(stage))


def autocast(run: Run, precision: str) -> torch.autocast:
    """Return a context that runs networks in bfloat16 if `precision` is "bf16"."""
    return torch.autocast(run.device.type, torch.bfloat16, enabled=precision == "bf16")


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move a batch to a device. uint8 images become float32 in [0, 1]."""
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    return {
        name: tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor
        for name, tensor in moved.items()
    }
