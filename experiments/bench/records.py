"""Clocks, facts about the machine, and result files, shared by the benchmarks."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def seconds_of(work: Callable[[], Any], device: str = "cpu") -> tuple[float, Any]:
    """Return the seconds of a call, and its result.

    On a CPU these are seconds of processor time, which other programs hardly disturb. They equal the
    wall time of an idle machine only with one compute thread. On CUDA they are wall seconds.
    """
    if device == "cpu":
        start = time.process_time()
        result = work()
        return time.process_time() - start, result
    import torch

    torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return time.perf_counter() - start, result


def median_seconds(work: Callable[[], Any], repeats: int, device: str = "cpu") -> tuple[float, Any]:
    """Return the median seconds of several calls, and the last result."""
    runs = [seconds_of(work, device) for _ in range(repeats)]
    return median(seconds for seconds, _ in runs), runs[-1][1]


def machine(device: str = "cpu") -> dict[str, Any]:
    """Describe the machine of a measurement."""
    import torch

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    """Return the name of the processor with its instructions for bfloat16."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    words = [word for word in ("avx512f", "avx512_bf16", "amx_bf16") if word in text]
    return f"CPU ({', '.join([names[0] if names else platform.machine(), *words])})"


def keep(name: str, rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Add rows to results/NAME.json and return all its rows.

    Each row describes its own machine, because parts of a benchmark may be measured one at a time.
    """
    path = RESULTS / f"{name}.json"
    RESULTS.mkdir(exist_ok=True)
    stored = json.loads(path.read_text()) if path.is_file() else {}
    stored.update(rows)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(stored, indent=1) + "\n")
    temporary.replace(path)
    return stored


def markdown(columns: list[str], rows: list[list[Any]]) -> list[str]:
    """Return the lines of a table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows] + [""]
