"""Measure the gain of a training step from keeping freed memory (sfss_ray/runtime/threads.py).

    python experiments/bench/allocator.py [--rounds 3] [--steps 4]

The script times steps of plain self-training with the compact network, batch 4, on one CPU thread. The C
library either keeps its defaults or keeps freed memory. Both modes alternate in processes of their own.
It measures wall time and peak memory, and writes results/allocator_cpu.md and .json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from statistics import median
from typing import Any

import torch
from records import RESULTS, keep, machine, markdown
from step import Trainer, scenes

from sfss_ray.config import Config
from sfss_ray.runtime.threads import keep_freed_memory
from sfss_ray.streets.default import embedded_config

CROPS = {"128x256": embedded_config, "512x512": Config}
MODES = ("default", "kept")
TITLE = "# A training step with the default C library, and with freed memory kept"


def steps_here(crop: str, mode: str, number: int) -> dict[str, float]:
    """Return the median seconds of a step in this process, after one warm-up step, and peak memory."""
    torch.set_num_threads(1)
    if mode == "kept":
        keep_freed_memory()
    config, seconds = CROPS[crop](), []
    trainer = Trainer("compact", config, 0.0, "cpu")
    batch = scenes(config.train.batch_size, config.train.augment.chosen_crop_size, "cpu")
    for _ in range(number + 1):
        start = time.perf_counter()
        trainer.step(batch)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": median(seconds[1:]), "mb": peak}


def run_in_process(crop: str, mode: str, number: int) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--steps", str(number), "--here", crop, mode]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(crop: str, rounds: int, number: int) -> dict[str, Any]:
    """Return a row: medians over rounds with both modes in each."""
    measured = [{mode: run_in_process(crop, mode, number) for mode in MODES} for _ in range(rounds)]
    row: dict[str, Any] = {"rounds": rounds, "steps": number}
    for mode in MODES:
        for unit in ("seconds", "mb"):
            row[f"{mode} {unit}"] = median(each[mode][unit] for each in measured)
    row["times_faster"] = median(r[MODES[0]]["seconds"] / r[MODES[1]]["seconds"] for r in measured)
    return row | machine() | {"threads": 1, "command": "python experiments/bench/allocator.py"}


def text_of(rows: dict[str, dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    columns = ["crop", "default, s", "kept, s", "times faster", "default, MB", "kept, MB"]
    cells = [
        [crop, *(f"{row[f'{mode} seconds']:.2f}" for mode in MODES), f"{row['times_faster']:.2f}"]
        + [f"{row[f'{mode} mb']:.0f}" for mode in MODES]
        for crop, row in rows.items()
    ]
    row = next(iter(rows.values()))
    facts = f"{row['device']}, {row['cores']} cores, torch {row['torch']}; `{row['command']}`"
    return "\n".join([TITLE, "", *markdown(columns, cells), facts]) + "\n"


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--here", nargs=2, metavar=("CROP", "MODE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        crop, mode = arguments.here
        print(json.dumps(steps_here(crop, mode, arguments.steps)))
        return
    for crop in CROPS:
        row = measure(crop, arguments.rounds, arguments.steps)
        rows = keep("allocator_cpu", {crop: row})
        print(crop, json.dumps(row), flush=True)
        (RESULTS / "allocator_cpu.md").write_text(text_of(rows))


if __name__ == "__main__":
    main()
