"""How a process of ours computes on CPUs: so many threads, and memory that is kept once it is there."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_KEPT = 2**31 - 1  # bytes at the heap's end
_LARGE = 2**30  # bytes from which an array still gets pages of its own


def use_threads(number: float) -> None:
    """For a process that computes with torch and nothing else beside: its threads, at least 1."""
    import torch

    torch.set_num_threads(max(1, int(number)))
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Have the C library give freed arrays to the next ones, not back to the system.

    Each step of a training makes the same large arrays anew. By default they come from the kernel every
    time, which clears each page first: with crops of 512x512 that is a third of a step's time
    (experiments/bench/allocator.py). A process then holds as much memory as it once had. Other C
    libraries than glibc are left as they are.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _LARGE)
