"""What the pool of actors on Ray Data costs, and what a second actor gains.

    OMP_NUM_THREADS=1 python experiments/bench/pool.py [--images 300] [--rounds 2]

Drawn street scenes, the shipped small SAM, one compute thread for each actor: a plain loop (read,
generate, keep), one actor, two actors, in turn for some rounds. Steady state is what lies between
the first and the last finished shard; all before the first is the start-up. Besides wall seconds
the processor seconds of all processes below this one are taken, Ray's own included: other programs
on the machine disturb those little. Writes results/pool_cpu.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from PIL import Image
from records import RESULTS, keep, machine, markdown

from sfss_ray import pool as ray_pool
from sfss_ray.compute import use_threads
from sfss_ray.config import Config, override
from sfss_ray.data.folders import read_image
from sfss_ray.masks import generate
from sfss_ray.masks.regions import build_region_source, make_recipe
from sfss_ray.streets.scenes import render_scene

SETTINGS = {
    "masks.regions": "small_sam",
    "masks.points_per_side": 8,
    "masks.pred_iou_thresh": 0.3,
    "masks.stability_score_thresh": 0.85,
    "masks.stability_score_offset": 0.1,
    "compute.device": "cpu",
    "compute.address": "local",
}


def render_images(folder: Path, count: int) -> None:
    """Scenes as PNG files."""
    for k in range(count):
        Image.fromarray(render_scene("camera", 7, k).image).save(folder / f"{k:05}.png")


def plain_loop(images: list[Path], config: Config) -> dict[str, float]:
    """The same generator in this process, set up as an actor; its first image is not counted."""
    use_threads(1)
    recipe, checkpoint = make_recipe(config.masks, None)
    source = build_region_source(recipe, checkpoint, config.masks.points_per_batch, "cpu")
    source(read_image(images[0]))
    wall, cpu = time.perf_counter(), time.process_time()
    kept = [source(read_image(path)) for path in images]
    assert len(kept) == len(images)
    return {
        "wall_ms": 1000 * (time.perf_counter() - wall) / len(images),
        "cpu_ms": 1000 * (time.process_time() - cpu) / len(images),
    }


def processor_seconds_below(pid: int) -> dict[int, float]:
    """Of each living process that `pid` started, directly or not (from /proc: Linux)."""
    parent, seconds = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        child = int(stat.parent.name)
        parent[child] = int(words[1])
        seconds[child] = (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    found, new = set(), {pid}
    while new:
        new = {child for child, above in parent.items() if above in new} - found
        found |= new
    return {child: seconds[child] for child in found}


class Watch(threading.Thread):
    """Notes wall time, processor time of all processes below, and shards finished."""

    def __init__(self, folder: Path, seconds: float = 0.5) -> None:
        super().__init__(daemon=True)
        self.folder, self.pause, self.ended = folder, seconds, threading.Event()
        self.cpu: dict[int, float] = {}
        self.notes: list[tuple[float, float, int]] = []

    def run(self) -> None:
        while not self.ended.wait(self.pause):
            self.note()

    def note(self) -> None:
        self.cpu.update(processor_seconds_below(os.getpid()))
        total = sum(self.cpu.values()) + time.process_time()
        shards = len(list(self.folder.glob("masks-*.parquet")))
        self.notes.append((time.perf_counter(), total, shards))


def through_pool(images: Path, config: Config, actors: int) -> dict[str, float]:
    """generate_masks with so many actors of one thread each."""
    config = override(config, {"compute.mask_actors": actors})
    # The door gives an actor its share of the cluster's CPUs as threads: here that is one.
    one_thread = patch.object(ray_pool, "threads_of_actor", lambda resources, size: 1)
    with tempfile.TemporaryDirectory() as folder, one_thread:
        out = Path(folder) / "masks"
        watch = Watch(out)
        start = time.perf_counter()
        watch.start()
        made = generate.generate_masks(images, out, config=config, progress=lambda _: None)
        whole = time.perf_counter() - start
        watch.ended.set()
        watch.join()
    last = watch.notes[-1][2]
    first = next(k for k, note in enumerate(watch.notes) if note[2] > 0)
    end = next(k for k, note in enumerate(watch.notes) if note[2] == last)
    between = made.images * (last - watch.notes[first][2]) / last
    return {
        "wall_ms": 1000 * (watch.notes[end][0] - watch.notes[first][0]) / between,
        "cpu_ms": 1000 * (watch.notes[end][1] - watch.notes[first][1]) / between,
        "start_up_seconds": watch.notes[first][0] - start,
        "whole_seconds": whole,
        "shards": last,
    }


def summary(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Medians, and what they come to."""
    rows: dict[str, dict[str, Any]] = {
        name: {key: median(run[key] for run in many) for key in many[0]}
        for name, many in runs.items()
    }
    loop, one, two = rows["plain loop"], rows["1 actor"], rows["2 actors"]
    for row in (one, two):
        row["overhead_cpu_percent"] = 100 * (row["cpu_ms"] / loop["cpu_ms"] - 1)
    one["overhead_wall_percent"] = 100 * (one["wall_ms"] / loop["wall_ms"] - 1)
    two["times_of_one_actor_wall"] = one["wall_ms"] / two["wall_ms"]
    two["times_of_one_actor_if_cores_are_free"] = 2 * one["cpu_ms"] / two["cpu_ms"]
    return rows


COLUMNS = (
    "wall_ms", "cpu_ms", "start_up_seconds", "overhead_cpu_percent", "overhead_wall_percent",
    "times_of_one_actor_wall", "times_of_one_actor_if_cores_are_free",
)  # fmt: skip


def text_of(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    facts = next(iter(rows.values()))
    body = [
        [name, *(f"{row[c]:.3g}" if c in row else "" for c in COLUMNS)]
        for name, row in rows.items()
    ]
    return "\n".join(
        [
            f"# The pool: {facts['images']} images of 256x128, small SAM, 64 points, an image each",
            "",
            f"`{facts['command']}`, medians of rounds in turn: {facts['rounds']}; {facts['device']},"
            f" {facts['cores']} cores, one thread an actor, torch {facts['torch']}, load"
            f" {facts['load']}. cpu ms: of all processes together, Ray's own included. The last"
            " column is what the processor seconds allow; the one before it was seen under that load.",
            "",
            *markdown(["", *(c.replace("_", " ") for c in COLUMNS)], body),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    config = override(Config(), SETTINGS)
    runs: dict[str, list[dict[str, float]]] = {"plain loop": [], "1 actor": [], "2 actors": []}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder)
        render_images(images, arguments.images)
        for _ in range(arguments.rounds):
            runs["plain loop"].append(plain_loop(sorted(images.iterdir()), config))
            runs["1 actor"].append(through_pool(images, config, 1))
            runs["2 actors"].append(through_pool(images, config, 2))
            print(json.dumps(runs), flush=True)
    facts = {
        "command": f"python experiments/bench/pool.py --images {arguments.images} --rounds"
        f" {arguments.rounds}",
        "images": arguments.images,
        "rounds": arguments.rounds,
        **machine(),
    }
    rows = {name: row | facts for name, row in summary(runs).items()}
    (RESULTS / "pool_cpu.md").write_text(text_of(keep("pool_cpu", rows)))


if __name__ == "__main__":
    main()
