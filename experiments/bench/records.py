"""What the benches share: clocks, facts of the machine, and results that grow row by row."""

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
    """Seconds of a call, and its result.

    On a CPU seconds of processor time, which other programs on the machine disturb little; they are
    wall seconds of an idle machine only with one compute thread. On CUDA wall seconds.
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
    """The median of a few calls, and the last result."""
    runs = [seconds_of(work, device) for _ in range(repeats)]
    return median(seconds for seconds, _ in runs), runs[-1][1]


def machine(device: str = "cpu") -> dict[str, Any]:
    """Where a row was measured, in words."""
    import torch

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    """Name and the instructions that matter for bfloat16, where the system tells them."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    words = [word for word in ("avx512f", "avx512_bf16", "amx_bf16") if word in text]
    return f"CPU ({', '.join([names[0] if names else platform.machine(), *words])})"


def keep(name: str, rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Put rows into results/NAME.json beside those of other runs; returns all of them.

    A row has its own facts: parts of a bench may be measured one at a time.
    """
    path = RESULTS / f"{name}.json"
    RESULTS.mkdir(exist_ok=True)
    known = json.loads(path.read_text()) if path.is_file() else {}
    known.update(rows)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(known, indent=1) + "\n")
    temporary.replace(path)
    return known


def markdown(columns: list[str], rows: list[list[Any]]) -> list[str]:
    """Lines of a table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows] + [""]
