"""Measure time and peak memory of a real adaptation step for each network.

    python experiments/bench/networks.py [--device cuda] [--networks deeplabv2_resnet101 ...] [--batch 1]

A step has two views, student and teacher, the contrast over Felzenszwalb regions of a drawn scene, the
backward pass and the optimiser step. Weights are random. On a CPU each row runs in a process of its
own, so that peaks stay apart, and a step includes reading its crops. On a GPU a step is the median of
ten on a batch in memory. The script writes results/networks_DEVICE.md and .json beside this file.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

NETWORKS = ("deeplabv2_resnet101", "segformer_b5", "daformer_b5")
PRECISIONS = ("fp32", "bf16")
CROP = (512, 1024)  # (height, width)
WARM_UP, REPEATS = 3, 10  # on a GPU
RESULTS = Path(__file__).resolve().parent / "results"


def measure(network: str, precision: str, device: str, batch: int, threads: int) -> dict[str, Any]:
    """Measure one row in this process."""
    import torch
    from PIL import Image

    from sfss_ray.config import Config, override
    from sfss_ray.data.class_sets import CITYSCAPES_19
    from sfss_ray.data.folders import ImageFile
    from sfss_ray.inspection.measurements import measure_training
    from sfss_ray.masks.regions import build_region_source, make_recipe
    from sfss_ray.models.architectures.catalogue import build_network
    from sfss_ray.models.model_file import SourceModel
    from sfss_ray.models.source import open_source
    from sfss_ray.runtime.threads import use_threads
    from sfss_ray.streets.scenes import render_scene

    use_threads(threads)
    torch.manual_seed(0)
    config = override(
        Config(),
        {
            "train.precision": precision,
            "train.batch_size": batch,
            "train.augment.crop_size": list(CROP),
            "train.augment.scale_range": [1.0, 1.0],
            "masks.regions": "felzenszwalb",
            "compute.device": device,
        },
    )
    model = SourceModel(build_network(network, len(CITYSCAPES_19)), network, CITYSCAPES_19)
    recipe, checkpoint = make_recipe(config.masks, None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.png"
        image = render_scene("camera", 0, 0, CROP).image
        Image.fromarray(image).save(path)
        masks = build_region_source(recipe, checkpoint, 64, device)(image)
        file = ImageFile("scene", path)
        with _steps_on_one_batch(device) as seconds:
            cost = measure_training(open_source(model), file, masks, config, device)
    parameters = sum(p.numel() for p in model.network.parameters()) / 1e6
    return {
        "network": network,
        "precision": precision,
        "parameters_millions": round(parameters, 1),
        "seconds_per_step": round(median(seconds), 4) if seconds else round(cost.seconds, 2),
        "peak_gb": round(cost.memory_mb / 1000, 1),
    }


@contextmanager
def _steps_on_one_batch(device: str) -> Iterator[list[float]]:
    """Collect the seconds of steps on one batch on a GPU. The list stays empty on a CPU.

    A loader in the same process would take as long for its crops as the GPU for its step.
    """
    import torch

    from sfss_ray.train import adaptation
    from sfss_ray.train.data_parallel import to_device
    from sfss_ray.train.gradients import StepContext

    seconds: list[float] = []

    def walk(trainable: Any, run: Any, schedule: Any) -> None:
        trainable.initialize()
        trainable.distribute()
        batch = to_device(next(iter(trainable.batches(0))), run.device)
        context = StepContext(schedule.num_steps)
        for _ in range(WARM_UP + REPEATS):
            torch.cuda.synchronize()
            started = time.perf_counter()
            trainable.step(batch, context)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        del seconds[:WARM_UP]

    with patch.object(adaptation, "run_loop", walk) if device == "cuda" else nullcontext():
        yield seconds


def in_this_process(words: list[str]) -> dict[str, Any]:
    """Measure a row, or return its error. Frees the GPU memory afterwards."""
    import torch

    network, precision, device, batch, threads = words
    try:
        return measure(network, precision, device, int(batch), int(threads))
    except Exception as error:
        traceback.print_exc(limit=-8)
        return {"network": network, "precision": precision, "error": str(error).splitlines()[0]}
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def in_own_process(words: list[str]) -> dict[str, Any]:
    """Measure a row in a process of its own, or return its error."""
    process = subprocess.run(
        [sys.executable, __file__, "--row", *words], capture_output=True, text=True
    )
    lines = process.stdout.strip().splitlines()
    if process.returncode == 0 and lines:
        return json.loads(lines[-1])
    reason = (process.stderr.strip().splitlines() or [f"ended with {process.returncode}"])[-1]
    return {"network": words[0], "precision": words[1], "error": reason}


def table(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = [
        f"`{facts['command']}`: {facts['device']}, {facts['threads']} threads, torch {facts['torch']},"
        f" batch {facts['batch']}, crop {CROP[0]}x{CROP[1]}, load before {facts['load']}",
        "",
        "| network | M parameters | precision | s / step | peak GB |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['network']} | | {row['precision']} | {row['error']} | |")
        else:
            lines.append(
                f"| {row['network']} | {row['parameters_millions']} | {row['precision']}"
                f" | {row['seconds_per_step']} | {row['peak_gb']} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--row", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        network, precision, device, batch, threads = arguments.row
        print(json.dumps(measure(network, precision, device, int(batch), int(threads))))
        return
    import torch

    facts = {
        "command": " ".join(["python experiments/bench/networks.py", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name()
        if arguments.device == "cuda"
        else f"CPU ({platform.machine()})",
        "threads": arguments.threads,
        "torch": torch.__version__,
        "batch": arguments.batch,
        "load": round(os.getloadavg()[0], 1),
    }
    rows = []
    for network in arguments.networks:
        for precision in arguments.precisions:
            words = [network, precision, arguments.device, arguments.batch, arguments.threads]
            row_of = in_this_process if arguments.device == "cuda" else in_own_process
            rows.append(row_of([str(word) for word in words]))
            print(json.dumps(rows[-1]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"networks_{arguments.device}"
    stem.with_suffix(".json").write_text(
        json.dumps({"facts": facts, "rows": rows}, indent=2) + "\n"
    )
    stem.with_suffix(".md").write_text(table(rows, facts))
    print(table(rows, facts))


if __name__ == "__main__":
    main()
