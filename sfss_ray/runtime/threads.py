"""CPU threads of a process, and reuse of the memory it has freed."""

from __future__ import annotations

import ctypes
import sys
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_TRIM_BYTES = 2**31 - 1  # free bytes at the end of the heap that are kept
_MMAP_BYTES = 2**30  # size from which an array still gets pages of its own


def use_threads(count: float) -> None:
    """Set the torch threads of a worker process, rounded down and at least 1, and keep freed memory."""
    import torch

    torch.set_num_threads(max(1, int(count)))
    keep_freed_memory()


def one_numpy_thread() -> AbstractContextManager[Any]:
    """Return a context in which numpy multiplies matrices with one thread, whatever torch uses.

    numpy's OpenBLAS starts a thread for each core even for small products. There it is slower than one
    thread, and threads that wait for the next product keep their cores busy.
    """
    return _numpy_threads().limit(limits=1)


@cache
def _numpy_threads() -> Any:
    from threadpoolctl import ThreadpoolController

    # Torch's own libraries have the number of threads that the user set.
    return ThreadpoolController().select(internal_api="openblas")


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
