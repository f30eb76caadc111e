"""Meters of the cost of a piece of work in this process: time, peak memory and threads."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MB = 1e6
_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Cost:
    """Measured cost of one unit of work."""

    seconds: float
    """Time per image, or per step."""
    memory_mb: float
    """Peak memory of this process; on CUDA the peak of the GPU memory that torch allocated."""
    disk_mb: float = 0.0
    """Size per image, or of one checkpoint."""
    note: str = ""


class PeakMemory:
    """Peak memory inside a `with` block: CUDA's counter, or samples of the process's resident memory."""

    def __init__(self, device: str):
        self.device, self.mb = device, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device == "cuda":
            import torch

            self.mb = torch.cuda.max_memory_allocated() / MB
        else:
            self._stop.set()
            self._thread.join()

    def _sample(self) -> None:
        while True:
            self.mb = max(self.mb, _resident_mb())
            if self._stop.wait(_SAMPLE_SECONDS):
                return


def _resident_mb() -> float:
    """Return the resident memory of this process, or its peak where the system has no /proc."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


@contextlib.contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Compute with `count` threads inside the block, as a process of the stage does."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Call `work`; returns its seconds and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result
