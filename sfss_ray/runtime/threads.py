"""CPU threads of a process, and reuse of the memory it has freed."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_TRIM_BYTES = 2**31 - 1  # free bytes at the end of the heap that are kept
_MMAP_BYTES = 2**30  # size from which an array still gets pages of its own


def use_threads(count: float) -> None:
    """Set the torch threads of a worker process, rounded down and at least 1, and keep freed memory."""
    import torch

    torch.set_num_threads(max(1, int(count)))
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Make the C library reuse freed arrays instead of returning them to the system.

    Each training step allocates the same large arrays again. By default they come from the kernel every
    time, which clears each page first. With crops of 512x512 that takes a third of a step's time
    (experiments/bench/allocator.py). The price is that a process keeps its peak memory. C libraries
    other than glibc are not changed.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _TRIM_BYTES)
        mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)
