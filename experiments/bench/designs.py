"""Measure what each design in which masks bring news adds to the time of a step.

    python experiments/bench/designs.py [--device cuda] [--settings embedded default] [--repeats 12]

Whole steps of the compact network: two views, student and teacher, backward pass, optimiser, moving
average. The baseline is self-training with the vote of the masks. It and all designs take their steps in
turns, so that they share the load of the machine. The memory is full, which is the most expensive case.
CPU times are process CPU time of one thread. The script writes results/designs_DEVICE.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import torch
from step import Clock, Trainer, default_config, facts, scenes
from torch import Tensor

from sfss_ray.config import Config, override
from sfss_ray.method.mask_neighbours import MaskNeighbours
from sfss_ray.method.mask_space import (
    EMBEDDING_WIDTH,
    GEOMETRY_WIDTH,
    MASK_EMBEDDING,
    MASK_GEOMETRY,
)
from sfss_ray.runtime.threads import use_threads
from sfss_ray.streets.default import embedded_config

RESULTS = Path(__file__).resolve().parent / "results"
WARM_UP = 2
SAM_WIDTH = 256
"""Channels of the embedding of SAM's image encoder."""
LIMIT = 15.0
"""Percent of a step that a design may add."""
VOTE = {
    "mask_vote": "pooled",
    "vote_weight": 0.5,
    "prior_power": 0.25,
    "contrast_weight": 0.0,
    "neighbour_weight": 0.0,
}
BASELINE = "self-training + vote"
DESIGNS: dict[str, dict[str, Any]] = {
    BASELINE: {},
    "contrast of pairs": {"contrast_weight": 0.03},
    "neighbours by geometry": {"neighbour_weight": 1.0, "neighbour_space": "geometry"},
    "neighbours by features": {"neighbour_weight": 1.0, "neighbour_space": "features"},
    "neighbours by both": {"neighbour_weight": 1.0, "neighbour_space": "both"},
    "neighbours by SAM's embedding": {"neighbour_weight": 2.0, "neighbour_space": "sam"},
    "neighbours in a learned space": {"neighbour_weight": 1.0, "neighbour_space": "learned"},
    "rule-out by mask": {"rule_out_weight": 1.0},
    "contrast of outputs": {"output_weight": 0.1},
    "contrast at boundaries": {"ring_weight": 0.1},
}
"""Name -> settings of `train.loss` beside those of the vote."""


def measure(config: Config, device: str, repeats: int) -> list[dict[str, Any]]:
    """Return a row for each design with the median time of a step and what it adds, in percent."""
    train, clock = config.train, Clock(device)
    batch = scenes(train.batch_size, train.augment.chosen_crop_size, device)
    batch[MASK_GEOMETRY] = draw_rows(batch, GEOMETRY_WIDTH)
    embedded = batch | {MASK_EMBEDDING: draw_rows(batch, SAM_WIDTH)}
    by_sam = {name for name, knobs in DESIGNS.items() if knobs.get("neighbour_space") == "sam"}
    trainers = {name: make_trainer(config, knobs, device) for name, knobs in DESIGNS.items()}
    times: dict[str, list[float]] = {name: [] for name in DESIGNS}
    for repeat in range(WARM_UP + repeats):
        for name, trainer in trainers.items():
            inputs = embedded if name in by_sam else batch
            seconds = clock(lambda trainer=trainer, inputs=inputs: trainer.step(inputs))
            if repeat >= WARM_UP:
                times[name].append(seconds)
    plain = times[BASELINE]
    return [
        {
            "design": name,
            "crop": list(train.augment.chosen_crop_size),
            "batch": train.batch_size,
            "step_ms": 1000 * statistics.median(seconds),
            # Of pairs of neighbouring steps, so that a change of load does not count.
            "adds_percent": 100
            * (statistics.median(a / b for a, b in zip(seconds, plain, strict=True)) - 1),
        }
        for name, seconds in times.items()
    ]


def make_trainer(config: Config, knobs: dict[str, Any], device: str) -> Trainer:
    """Return student, teacher and memory of a design, its ring of neighbours full."""
    named = {f"train.loss.{name}": value for name, value in (VOTE | knobs).items()}
    config = override(config, named)
    trainer = Trainer("compact", config, config.train.loss.contrast_weight, device)
    ring = trainer.memory.neighbours
    if ring is not None:
        fill(ring, config.train.loss.neighbour_space, trainer.student.segmenter.feature_width)
    return trainer


def fill(ring: MaskNeighbours, space: str, feature_width: int) -> None:
    """Fill a ring with random masks of other images."""
    widths = {
        "geometry": (GEOMETRY_WIDTH,),
        "features": (feature_width,),
        "both": (feature_width, GEOMETRY_WIDTH),
        "learned": (EMBEDDING_WIDTH,),
        "sam": (SAM_WIDTH,),
    }
    count, classes = ring.probabilities.shape
    device = ring.probabilities.device
    described = [torch.randn(count, width, device=device) for width in widths[space]]
    probabilities = torch.randn(count, classes, device=device).softmax(1)
    ring.write(described, torch.full((count,), 10_000, device=device), probabilities)


def draw_rows(batch: dict[str, Tensor], width: int) -> Tensor:
    """Return random numbers (B, ids, width) for every mask of the batch."""
    ids = batch["mask_ids"]
    return torch.rand(len(ids), int(ids.max()) + 1, width, device=ids.device)


def table(rows: list[dict[str, Any]], header: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = [
        f"`{header['command']}`: {header['device']}, one thread, torch {header['torch']},"
        f" load before {header['load']}; {header['clock']}, medians",
        "",
        f"| setting | crop | batch | design | step, ms | adds (limit {LIMIT:.0f} %) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        adds = "" if row["design"] == BASELINE else f"{row['adds_percent']:+.1f} %"
        lines.append(
            f"| {row['setting']} | {row['crop'][0]}x{row['crop'][1]} | {row['batch']}"
            f" | {row['design']} | {row['step_ms']:.0f} | {adds} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    configs = {"embedded": embedded_config, "default": default_config}
    parser.add_argument("--settings", nargs="+", choices=configs, default=list(configs))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    use_threads(1)
    header = facts(arguments.device, round(os.getloadavg()[0], 1))
    header["command"] = f"python experiments/bench/designs.py --device {arguments.device}"
    rows: list[dict[str, Any]] = []
    arguments.results.mkdir(parents=True, exist_ok=True)
    stem = arguments.results / f"designs_{arguments.device}"
    for name in arguments.settings:
        measured = measure(configs[name](), arguments.device, arguments.repeats)
        rows += [{"setting": name} | row for row in measured]
        content = {"facts": header, "rows": rows}
        stem.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
        stem.with_suffix(".md").write_text(table(rows, header))
    print(stem.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
