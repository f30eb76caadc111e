"""Measure the overhead of the pool of Ray Data actors, and the gain from a second actor.

    python experiments/bench/pool.py [--images 300] [--runs 2] [--slice 5]
    python experiments/bench/pool.py --device cuda [--images 300] [--sam-checkpoint sam_vit_h_4b8939.pth]

The images are drawn street scenes, the network is the shipped small SAM, and each actor has one thread.
Four sides are compared: a plain loop, two plain loops at once (the limit of the machine), a pool of one
actor, and a pool of two. Each pool has a Ray cluster of its own. The speed of a machine can change by a
third within minutes, so the sides take turns of a few seconds. While one side runs, all processes of
the others, Ray included, are stopped (SIGSTOP). Only turns in the steady state are compared: after
every actor has finished a shard, and before the first may run out of work. Shards hold four images, an
eighth of the default, because images are counted by shards. The script needs Linux and writes
results/pool_cpu.md and .json.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from PIL import Image
from records import RESULTS, keep, machine, markdown

from sfss_ray.config import Config, override
from sfss_ray.data.decoding import read_image
from sfss_ray.masks import generate
from sfss_ray.masks.regions import build_region_source, make_recipe
from sfss_ray.runtime.pool_plan import PoolPlan
from sfss_ray.runtime.threads import use_threads
from sfss_ray.streets.scenes import render_scene

SHARD = 4
SETTINGS = {
    "masks.regions": "small_sam",
    "masks.points_per_side": 8,
    "masks.pred_iou_thresh": 0.3,
    "masks.stability_score_thresh": 0.85,
    "masks.stability_score_offset": 0.1,
    "masks.images_per_shard": SHARD,
    "compute.device": "cpu",
    "compute.address": "local",
}
LOOP, LOOPS, ONE, TWO = "plain loop", "2 plain loops", "1 actor", "2 actors"


def render_images(folder: Path, count: int) -> None:
    """Write scenes as PNG files."""
    folder.mkdir()
    for k in range(count):
        Image.fromarray(render_scene("camera", 7, k).image).save(folder / f"{k:05}.png")


def plain_loop(images: Path, counted: Path) -> None:
    """Run the generator as an actor does, without end. Append a byte to `counted` for each image."""
    config = override(Config(), SETTINGS)
    use_threads(1)
    recipe, checkpoint = make_recipe(config.masks, None)
    source = build_region_source(recipe, checkpoint, config.masks.points_per_batch, "cpu")
    with counted.open("ab", buffering=0) as count:
        for path in itertools.cycle(sorted(images.iterdir())):
            source(read_image(path))
            count.write(b".")


def through_pool(images: Path, out: Path, actors: int) -> None:
    """Run generate_masks with `actors` actors of one thread each."""
    config = override(Config(), SETTINGS | {"compute.mask_actors": actors})
    # By default an actor uses its share of the CPUs of the cluster as threads.
    with patch.object(PoolPlan, "threads", 1):
        generate.generate_masks(images, out, config=config, progress=lambda _: None)


def processes_below(roots: list[int]) -> dict[int, float]:
    """Return the processor seconds of these processes and of all their descendants (/proc)."""
    parent, seconds = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # the process has ended
        child = int(stat.parent.name)
        parent[child] = int(words[1])
        seconds[child] = (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    family, generation = set(), set(roots) & set(parent)
    while generation:
        family |= generation
        generation = {pid for pid, above in parent.items() if above in generation} - family
    return {pid: seconds[pid] for pid in family}


@dataclass
class Turn:
    """Wall seconds, processor seconds and images of one turn."""

    wall: float
    cpu: float
    images: int
    steady: bool


@dataclass
class Side:
    """One of the compared sides: processes that are stopped and continued together."""

    name: str
    processes: list[subprocess.Popen]
    outputs: list[Path]
    actors: int
    images: int
    turns: list[Turn] = field(default_factory=list)
    start_up_seconds: float | None = None

    def count_images(self) -> int:
        """Return the number of finished images."""
        if not self.actors:
            return sum(p.stat().st_size for p in self.outputs if p.exists())
        return SHARD * sum(1 for _ in self.outputs[0].glob("masks-*.parquet"))

    def is_over(self) -> bool:
        """Return whether all processes have ended. Only a pool ends by itself."""
        return all(process.poll() is not None for process in self.processes)

    def is_steady(self) -> bool:
        """Return whether every actor has another shard to make after its current one."""
        return not self.actors or self.count_images() <= self.images - 2 * self.actors * SHARD

    def start(self) -> None:
        """Wait until every actor or loop has finished an image, then stop the processes."""
        started = time.perf_counter()
        while self.count_images() < max(SHARD * self.actors, 2 * len(self.processes)):
            if self.is_over():
                raise SystemExit(f"{self.name} ended before it made anything")
            time.sleep(0.05)
            if self.start_up_seconds is None and self.count_images():
                self.start_up_seconds = time.perf_counter() - started
        self.send(signal.SIGSTOP)

    def send(self, number: signal.Signals) -> dict[int, float]:
        """Signal all processes of the side. Return their processor seconds."""
        seconds = processes_below([process.pid for process in self.processes])
        for pid in seconds:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return seconds

    def run(self, seconds: float) -> None:
        """Continue for some seconds."""
        before, images = self.send(signal.SIGCONT), self.count_images()
        started = time.perf_counter()
        time.sleep(seconds)
        steady = self.is_steady()
        after = self.send(signal.SIGSTOP)
        wall = time.perf_counter() - started
        cpu = sum(after.values()) - sum(before.get(pid, 0.0) for pid in after)
        self.turns.append(Turn(wall, cpu, self.count_images() - images, steady))

    def finish(self) -> None:
        """Wait for the end of a pool, or terminate a loop."""
        self.send(signal.SIGCONT)
        for process in self.processes:
            if not self.actors:
                process.terminate()
            process.wait()


@contextlib.contextmanager
def sides(images: Path, scratch: Path, count: int) -> Iterator[dict[str, Side]]:
    """Start the four sides one after the other, each stopped after its start."""
    by_name: dict[str, Side] = {}
    try:
        for name, actors, processes in ((LOOP, 0, 1), (LOOPS, 0, 2), (ONE, 1, 1), (TWO, 2, 1)):
            outputs = [scratch / f"{name} {k}" for k in range(processes)]
            command = [
                sys.executable,
                __file__,
                "--actors",
                str(actors),
                "--from-folder",
                str(images),
            ]
            quiet = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "stderr": subprocess.DEVNULL}
            started = [subprocess.Popen([*command, "--into", str(p)], **quiet) for p in outputs]
            by_name[name] = Side(name, started, outputs, actors, count)
            by_name[name].start()
        yield by_name
    finally:
        for side in by_name.values():
            side.finish()


def one_run(images: Path, scratch: Path, count: int, seconds: float) -> dict[str, dict[str, float]]:
    """Run turns until both pools have finished. Return the summary."""
    with sides(images, scratch, count) as four:
        pools = [four[ONE], four[TWO]]
        while any(pool.is_steady() for pool in pools):
            for side in four.values():
                if side.is_steady():
                    side.run(seconds)
    return summary(four)


def summary(four: dict[str, Side]) -> dict[str, dict[str, float]]:
    """Return milliseconds per image. Comparisons use the turns in which both sides were steady."""
    rows: dict[str, dict[str, float]] = {}
    for name, side in four.items():
        wall, cpu = _ms(side, len(side.turns))
        rows[name] = {"wall_ms": wall, "cpu_ms": cpu, "turns": len(side.turns)}
        if side.actors and side.start_up_seconds is not None:
            rows[name]["start_up_seconds"] = side.start_up_seconds
    for pool, loop in ((ONE, LOOP), (TWO, LOOPS)):
        mine, other = _together(four[pool], four[loop])
        rows[pool]["overhead_wall_percent"] = 100 * (mine[0] / other[0] - 1)
        rows[pool]["overhead_cpu_percent"] = 100 * (mine[1] / other[1] - 1)
    for both, single in ((LOOPS, LOOP), (TWO, ONE)):
        mine, other = _together(four[both], four[single])
        rows[both]["times_of_one"] = other[0] / mine[0]
    return rows


def _together(a: Side, b: Side) -> tuple[tuple[float, float], tuple[float, float]]:
    turns = min(sum(turn.steady for turn in side.turns) for side in (a, b))
    return _ms(a, turns), _ms(b, turns)


def _ms(side: Side, turns: int) -> tuple[float, float]:
    """Return wall and processor milliseconds per image over the first turns."""
    first_turns = side.turns[:turns]
    images = sum(turn.images for turn in first_turns)
    wall, cpu = sum(turn.wall for turn in first_turns), sum(turn.cpu for turn in first_turns)
    return 1000 * wall / images, 1000 * cpu / images


COLUMNS = (
    "wall_ms", "cpu_ms", "start_up_seconds", "overhead_wall_percent", "overhead_cpu_percent",
    "times_of_one",
)  # fmt: skip


def medians(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Return the median of each side and column, with the values of each run beside it."""
    rows: dict[str, dict[str, Any]] = {}
    for name, first in runs[0].items():
        each = {key: [round(run[name][key], 3) for run in runs] for key in first}
        rows[name] = {key: median(values) for key, values in each.items()} | {"each_run": each}
    return rows


def text_of(rows: dict[str, dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    facts = next(iter(rows.values()))
    body = [
        [name, *(f"{row[c]:.3g}" if c in row else "" for c in COLUMNS)]
        for name, row in rows.items()
    ]
    each = [
        f"- {name}, {column.replace('_', ' ')}: {', '.join(f'{v:.3g}' for v in row['each_run'][column])}"
        for name, row in rows.items()
        for column in ("overhead_wall_percent", "times_of_one")
        if column in row
    ]
    return "\n".join(
        [
            f"# The pool: {facts['images']} images of 256x128, small SAM, 64 points",
            "",
            f"`{facts['command']}`; {facts['device']}, {facts['cores']} cores, one thread per actor,"
            f" torch {facts['torch']}. Medians of {facts['runs']} runs, in each of which the four sides"
            f" take turns of {facts['slice']:g} s. ms: per image. cpu: of all processes, Ray included."
            " Overhead: against as many plain loops. Times of one: against one actor or loop.",
            "",
            *markdown(["", *(c.replace("_", " ") for c in COLUMNS)], body),
            "",
            "Each run:",
            "",
            *each,
            "",
        ]
    )


def measure_gpu(images: int, sam_checkpoint: str) -> None:
    """Write the table of the pool on a GPU."""
    from pool_scale import on_device, write_table

    command = f"python experiments/bench/pool.py --device cuda --images {images}"
    command += f" --sam-checkpoint {Path(sam_checkpoint).name}" if sam_checkpoint else ""
    with tempfile.TemporaryDirectory() as folder:
        rows = on_device(images, "cuda", sam_checkpoint, Path(folder))
    write_table("pool_cuda", "Masks of 2048x1024 on a GPU, PNG in and Parquet out", command, rows)


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--slice", type=float, default=5.0, help="seconds of a turn")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--sam-checkpoint", default="", help="with --device cuda; else the small SAM"
    )
    parser.add_argument("--actors", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--from-folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.from_folder and arguments.actors:
        return through_pool(arguments.from_folder, arguments.into, arguments.actors)
    if arguments.from_folder:
        return plain_loop(arguments.from_folder, arguments.into)
    if arguments.device == "cuda":
        return measure_gpu(arguments.images, arguments.sam_checkpoint)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        render_images(images, arguments.images)
        for run in range(arguments.runs):
            scratch = Path(folder) / f"run {run}"
            scratch.mkdir()
            runs.append(one_run(images, scratch, arguments.images, arguments.slice))
            print(runs[-1], flush=True)
    command = (
        f"python experiments/bench/pool.py --images {arguments.images} --runs {arguments.runs}"
    )
    facts = {
        "command": command,
        "images": arguments.images,
        "runs": arguments.runs,
        "slice": arguments.slice,
    }
    rows = {name: row | facts | machine() for name, row in medians(runs).items()}
    (RESULTS / "pool_cpu.md").write_text(text_of(keep("pool_cpu", rows)))


if __name__ == "__main__":
    main()
