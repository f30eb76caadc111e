"""What a training step gains by keeping freed memory (sfss_ray/runtime/threads.py), on a CPU.

    python experiments/bench/allocator.py [--rounds 3] [--steps 4]

Steps of plain self-training with the compact network, batch 4, one thread, with the C library as it is
and with freed memory kept: processes of their own, in turns. Wall time, and the most memory a process
had. Writes results/allocator_cpu.md and .json.
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
WAYS = ("as it is", "kept")
TITLE = "# A training step with the C library as it is, and with freed memory kept"


def steps_here(crop: str, way: str, number: int) -> dict[str, float]:
    """Median seconds of a step in this process, after one that is not counted, and its memory."""
    torch.set_num_threads(1)
    if way == "kept":
        keep_freed_memory()
    config, seconds = CROPS[crop](), []
    trainer = Trainer("compact", config, 0.0, "cpu")
    batch = scenes(config.train.batch_size, config.train.augment.crop_size, "cpu")
    for _ in range(number + 1):
        start = time.perf_counter()
        trainer.step(batch)
        seconds.append(time.perf_counter() - start)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": median(seconds[1:]), "mb": most}


def in_a_process(crop: str, way: str, number: int) -> dict[str, float]:
    words = [sys.executable, __file__, "--steps", str(number), "--here", crop, way]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def measure(crop: str, rounds: int, number: int) -> dict[str, Any]:
    """A row: medians over rounds, both ways in each."""
    seen = [{way: in_a_process(crop, way, number) for way in WAYS} for _ in range(rounds)]
    row: dict[str, Any] = {"rounds": rounds, "steps": number}
    for way in WAYS:
        for what in ("seconds", "mb"):
            row[f"{way} {what}"] = median(each[way][what] for each in seen)
    row["times_faster"] = median(r[WAYS[0]]["seconds"] / r[WAYS[1]]["seconds"] for r in seen)
    return row | machine() | {"threads": 1, "command": "python experiments/bench/allocator.py"}


def text_of(rows: dict[str, dict[str, Any]]) -> str:
    columns = ["crop", "as it is, s", "kept, s", "times faster", "as it is, MB", "kept, MB"]
    cells = [
        [crop, *(f"{row[f'{way} seconds']:.2f}" for way in WAYS), f"{row['times_faster']:.2f}"]
        + [f"{row[f'{way} mb']:.0f}" for way in WAYS]
        for crop, row in rows.items()
    ]
    row = next(iter(rows.values()))
    facts = f"{row['device']}, {row['cores']} cores, torch {row['torch']}; `{row['command']}`"
    return "\n".join([TITLE, "", *markdown(columns, cells), facts]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--here", nargs=2, metavar=("CROP", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        crop, way = arguments.here
        print(json.dumps(steps_here(crop, way, arguments.steps)))
        return
    for crop in CROPS:
        row = measure(crop, arguments.rounds, arguments.steps)
        rows = keep("allocator_cpu", {crop: row})
        print(crop, json.dumps(row), flush=True)
        (RESULTS / "allocator_cpu.md").write_text(text_of(rows))


if __name__ == "__main__":
    main()
