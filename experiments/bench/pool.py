"""What the pool of actors on Ray Data costs, and what a second actor gains.

    python experiments/bench/pool.py [--images 300] [--runs 2] [--slice 5]

Drawn street scenes, the shipped small SAM, one compute thread for each actor. Four sides: a plain loop
(read, generate, keep), two such loops at once, which is what the machine's cores give, a pool of one
actor and one of two, each on a Ray cluster of its own. A machine's speed changes by a third within
minutes, so the sides take turns of some seconds: all processes of a side, Ray's own too, are stopped
(SIGSTOP) while another runs. What is compared are turns of the same stretch: from when every actor has
finished a shard until the first may find no more. Shards are of four images, an eighth of the default:
images are counted by them, and each costs a file and a turn of Ray Data. Linux alone.
Writes results/pool_cpu.md and .json.
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
from sfss_ray.runtime import pool as ray_pool
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
    """Scenes as PNG files."""
    folder.mkdir()
    for k in range(count):
        Image.fromarray(render_scene("camera", 7, k).image).save(folder / f"{k:05}.png")


def plain_loop(images: Path, counted: Path) -> None:
    """The generator set up as in an actor, round and round; a byte more in `counted` for each image."""
    config = override(Config(), SETTINGS)
    use_threads(1)
    recipe, checkpoint = make_recipe(config.masks, None)
    source = build_region_source(recipe, checkpoint, config.masks.points_per_batch, "cpu")
    with counted.open("ab", buffering=0) as count:
        for path in itertools.cycle(sorted(images.iterdir())):
            source(read_image(path))
            count.write(b".")


def through_pool(images: Path, out: Path, actors: int) -> None:
    """generate_masks with so many actors of one thread each."""
    config = override(Config(), SETTINGS | {"compute.mask_actors": actors})
    # The door gives an actor its share of the cluster's CPUs as threads: here that is one.
    with patch.object(ray_pool, "threads_of_actor", lambda resources, size: 1):
        generate.generate_masks(images, out, config=config, progress=lambda _: None)


def processes_below(roots: list[int]) -> dict[int, float]:
    """Processor seconds of these processes and of all that they started, directly or not (/proc)."""
    parent, seconds = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        child = int(stat.parent.name)
        parent[child] = int(words[1])
        seconds[child] = (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    found, new = set(), set(roots) & set(parent)
    while new:
        found |= new
        new = {child for child, above in parent.items() if above in new} - found
    return {child: seconds[child] for child in found}


@dataclass
class Turn:
    """What a side did while it ran: seconds, processor seconds, images."""

    wall: float
    cpu: float
    images: int
    steady: bool


@dataclass
class Side:
    """One of what is compared: processes that are stopped and go on together."""

    name: str
    processes: list[subprocess.Popen]
    places: list[Path]
    actors: int
    images: int
    turns: list[Turn] = field(default_factory=list)
    start_up_seconds: float | None = None

    def done(self) -> int:
        """Images so far."""
        if not self.actors:
            return sum(p.stat().st_size for p in self.places if p.exists())
        return SHARD * sum(1 for _ in self.places[0].glob("masks-*.parquet"))

    def is_over(self) -> bool:
        """A pool ends; a loop does not."""
        return all(process.poll() is not None for process in self.processes)

    def is_steady(self) -> bool:
        """Whether every actor has a shard to make after the one it is at."""
        return not self.actors or self.done() <= self.images - 2 * self.actors * SHARD

    def start(self) -> None:
        """Wait until every actor, or loop, has made something, then stop."""
        begun = time.perf_counter()
        while self.done() < max(SHARD * self.actors, 2 * len(self.processes)):
            if self.is_over():
                raise SystemExit(f"{self.name} ended before it made anything")
            time.sleep(0.05)
            if self.start_up_seconds is None and self.done():
                self.start_up_seconds = time.perf_counter() - begun
        self.send(signal.SIGSTOP)

    def send(self, number: signal.Signals) -> dict[int, float]:
        """Signal all processes of the side; returns their processor seconds."""
        seconds = processes_below([process.pid for process in self.processes])
        for pid in seconds:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return seconds

    def run(self, seconds: float) -> None:
        """Go on for so long."""
        before, made = self.send(signal.SIGCONT), self.done()
        begun = time.perf_counter()
        time.sleep(seconds)
        steady = self.is_steady()
        after = self.send(signal.SIGSTOP)
        wall = time.perf_counter() - begun
        cpu = sum(after.values()) - sum(before.get(pid, 0.0) for pid in after)
        self.turns.append(Turn(wall, cpu, self.done() - made, steady))

    def finish(self) -> None:
        """Let a pool come to its end; end a loop."""
        self.send(signal.SIGCONT)
        for process in self.processes:
            if not self.actors:
                process.terminate()
            process.wait()


@contextlib.contextmanager
def sides(images: Path, scratch: Path, count: int) -> Iterator[dict[str, Side]]:
    """All four, started one after the other and stopped."""
    made: dict[str, Side] = {}
    try:
        for name, actors, processes in ((LOOP, 0, 1), (LOOPS, 0, 2), (ONE, 1, 1), (TWO, 2, 1)):
            places = [scratch / f"{name} {k}" for k in range(processes)]
            words = [
                sys.executable,
                __file__,
                "--actors",
                str(actors),
                "--from-folder",
                str(images),
            ]
            quiet = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "stderr": subprocess.DEVNULL}
            started = [subprocess.Popen([*words, "--into", str(p)], **quiet) for p in places]
            made[name] = Side(name, started, places, actors, count)
            made[name].start()
        yield made
    finally:
        for side in made.values():
            side.finish()


def one_run(images: Path, scratch: Path, count: int, seconds: float) -> dict[str, dict[str, float]]:
    """Turns until both pools are done; what they come to."""
    with sides(images, scratch, count) as four:
        pools = [four[ONE], four[TWO]]
        while any(pool.is_steady() for pool in pools):
            for side in four.values():
                if side.is_steady():
                    side.run(seconds)
    return summary(four)


def summary(four: dict[str, Side]) -> dict[str, dict[str, float]]:
    """Milliseconds an image; comparisons over the turns in which both were steady."""
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
    """Wall and processor milliseconds an image over the first turns."""
    some = side.turns[:turns]
    images = sum(turn.images for turn in some)
    wall, cpu = sum(turn.wall for turn in some), sum(turn.cpu for turn in some)
    return 1000 * wall / images, 1000 * cpu / images


COLUMNS = (
    "wall_ms", "cpu_ms", "start_up_seconds", "overhead_wall_percent", "overhead_cpu_percent",
    "times_of_one",
)  # fmt: skip


def medians(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Of each side and column; the runs' own values beside them."""
    rows: dict[str, dict[str, Any]] = {}
    for name, first in runs[0].items():
        each = {key: [round(run[name][key], 3) for run in runs] for key in first}
        rows[name] = {key: median(values) for key, values in each.items()} | {"each_run": each}
    return rows


def text_of(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
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
            f"`{facts['command']}`; {facts['device']}, {facts['cores']} cores, one thread an actor,"
            f" torch {facts['torch']}. Medians of {facts['runs']} runs, in each of which the four sides"
            f" take turns of {facts['slice']:g} s. ms: of an image; cpu: of all processes, Ray's own"
            " included. Overhead: against as many plain loops. Times of one: of one actor or loop.",
            "",
            *markdown(["", *(c.replace("_", " ") for c in COLUMNS)], body),
            "",
            "Each run:",
            "",
            *each,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--slice", type=float, default=5.0, help="seconds of a turn")
    parser.add_argument("--actors", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--from-folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.from_folder and given.actors:
        return through_pool(given.from_folder, given.into, given.actors)
    if given.from_folder:
        return plain_loop(given.from_folder, given.into)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        render_images(images, given.images)
        for run in range(given.runs):
            scratch = Path(folder) / f"run {run}"
            scratch.mkdir()
            runs.append(one_run(images, scratch, given.images, given.slice))
            print(runs[-1], flush=True)
    command = f"python experiments/bench/pool.py --images {given.images} --runs {given.runs}"
    facts = {"command": command, "images": given.images, "runs": given.runs, "slice": given.slice}
    rows = {name: row | facts | machine() for name, row in medians(runs).items()}
    (RESULTS / "pool_cpu.md").write_text(text_of(keep("pool_cpu", rows)))


if __name__ == "__main__":
    main()
