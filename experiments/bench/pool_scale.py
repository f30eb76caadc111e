"""Measure what a pool of masks costs with many images, and what its stages cost.

    python experiments/bench/pool_scale.py --images 100000 [--base 5000] [--s3-images 1000]
    python experiments/bench/pool_scale.py --forms 24 [--turns 2]
    python experiments/bench/pool.py --device cuda [--images 300] [--sam-checkpoint sam_vit_h_4b8939.pth]

The first form makes Felzenszwalb regions of tiny drawn images: `--base` images, then `--images`, then
`--base` again, because the speed of a shared machine changes. With `--s3-images` it also takes images
and shards at an address on moto's S3 server. The second compares one stage with three on CPUs, in turns.
The third is for a machine with a GPU: 2048x1024 PNG in, Parquet out, in both forms, beside the bare
generator on images in memory. Every run is a process with a Ray cluster of its own. Images per second
count from the first shard to the last, so that start-up is left out. The scripts write results/pool_*.md
and .json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image
from records import RESULTS, keep, machine, markdown

from sfss_ray.config import Config, override
from sfss_ray.data.decoding import read_image
from sfss_ray.masks.bank.schema import parquet_files
from sfss_ray.masks.generate import generate_masks
from sfss_ray.masks.regions import build_region_source, make_recipe
from sfss_ray.runtime import pool_plan
from sfss_ray.storage.places import address_of, to_place
from sfss_ray.streets.scenes import render_scene

LARGE = (1024, 2048)
TINY = (24, 32)
ONE, THREE, BARE = "one stage", "three stages", "generator alone"
SMALL_SAM = {
    "masks.regions": "small_sam",
    "masks.points_per_side": 8,
    "masks.pred_iou_thresh": 0.3,
    "masks.stability_score_thresh": 0.85,
    "masks.stability_score_offset": 0.1,
}


def draw_tiny(folder: Path, count: int) -> Path:
    """Write tiny images of two rectangles on a gradient."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    gradient = np.linspace(0, 80, TINY[1]).astype(np.uint8)
    for k in range(count):
        pixels = np.broadcast_to(gradient[:, None], (*TINY, 3)).copy()
        for colour in rng.integers(90, 256, (2, 3)):
            y, x = rng.integers(0, (TINY[0] - 8, TINY[1] - 8))
            pixels[y : y + 8, x : x + 8] = colour
        Image.fromarray(pixels).save(folder / f"{k:06}.png", compress_level=1)
    return folder


def draw_large(folder: Path, count: int) -> Path:
    """Write drawn street scenes as PNG files of 2048x1024; a few scenes are repeated."""
    folder.mkdir()
    for k in range(count):
        if k < 16:
            scene = Image.fromarray(render_scene("camera", 7, k).image)
            scene = scene.resize((LARGE[1], LARGE[0]), Image.Resampling.BICUBIC)
            # Grain, without which a PNG is decoded faster than that of a camera.
            grain = np.random.default_rng(k).integers(-6, 7, (*LARGE, 3))
            pixels = np.clip(np.asarray(scene, np.int16) + grain, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{k:06}.png")
        else:
            (folder / f"{k:06}.png").write_bytes((folder / f"{k % 16:06}.png").read_bytes())
    return folder


def one_run(images: str, out: str, form: str, settings: dict[str, Any], sam: str) -> dict[str, Any]:
    """Make the masks of a folder in this process; return what the run cost."""
    config = override(Config(), {"compute.address": "local"} | settings)
    started = time.time()
    with patch.object(pool_plan, "works_in_stages", lambda gpus: form == THREE):
        generate_masks(
            images, out, sam_checkpoint=sam or None, config=config, progress=lambda _: None
        )
    seconds = time.time() - started
    usage = resource.getrusage(resource.RUSAGE_SELF)
    shards = sorted(path.stat().st_mtime_ns / 1e9 for path in parquet_files(to_place(out)))
    return {
        "seconds": seconds,
        "first_shard_seconds": shards[0] - started,
        "working_seconds": shards[-1] - shards[0],
        "shards": len(shards),
        "driver_mb": usage.ru_maxrss / 1024,
        "driver_cpu_seconds": usage.ru_utime + usage.ru_stime,
    }


def run(
    images: Any, out: Any, form: str, count: int, settings: dict[str, Any], sam: str = ""
) -> dict[str, Any]:
    """Run `one_run` in a process of its own; return its row."""
    words = [str(images), str(out), form, json.dumps(settings), sam]
    process = subprocess.run(
        [sys.executable, __file__, "--child", *words], capture_output=True, text=True
    )
    if process.returncode:
        raise SystemExit(process.stdout[-2000:] + process.stderr[-4000:])
    row = json.loads(process.stdout.splitlines()[-1])
    working_images = count * (1 - 1 / row["shards"])
    row |= {"images": count, "form": form}
    row["images_per_second"] = working_images / max(row["working_seconds"], 1e-9)
    row["driver_cpu_ms"] = 1000 * row["driver_cpu_seconds"] / count
    print(json.dumps(row), flush=True)
    return row


def scale(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Compare many images with few, on a disk and at an address."""
    settings = {"compute.device": "cpu"}
    rows = []
    sizes = {arguments.base: folder / "few", arguments.images: folder / "many"}
    for count, path in sizes.items():
        draw_tiny(path, count)
    for turn, count in enumerate((arguments.base, arguments.images, arguments.base)):
        row = run(sizes[count], folder / f"masks {turn}", ONE, count, settings)
        rows.append(row | {"name": f"{count} images on a disk, turn {turn + 1}"})
    if arguments.s3_images:
        rows += at_an_address(arguments.s3_images, folder, settings)
    return rows


def at_an_address(count: int, folder: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Run with images and shards on an S3 server of this machine: a fifth of the images, then all."""
    from storage import s3_server

    rows = []
    with s3_server() as bucket:
        for number in (count // 5, count):
            local = draw_tiny(folder / f"s3 {number}", number)
            for path in local.iterdir():
                (bucket / f"images{number}" / path.name).write_bytes(path.read_bytes())
            images, out = (address_of(bucket / f"{name}{number}") for name in ("images", "masks"))
            row = run(images, out, ONE, number, settings)
            rows.append(row | {"name": f"{number} images at s3://"})
    return rows


def forms(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Compare one stage with three on the CPUs of this machine, in turns."""
    images, rows = draw_large(folder / "images", arguments.forms), []
    settings = SMALL_SAM | {"compute.device": "cpu", "masks.images_per_shard": 2}
    for turn in range(arguments.turns):
        for form in (ONE, THREE):
            row = run(images, folder / f"{form} {turn}", form, arguments.forms, settings)
            rows.append(row | {"name": f"{form}, turn {turn + 1}"})
    return rows


def on_device(count: int, device: str, sam: str, folder: Path) -> list[dict[str, Any]]:
    """Compare the pool in both forms with the bare generator on images in memory."""
    images = draw_large(folder / "images", count)
    settings = ({} if sam else SMALL_SAM) | {"compute.device": device, "compute.mask_actors": 1}
    rows: list[dict[str, Any]] = [
        generator_alone(images, count, settings, sam, device) | {"name": BARE}
    ]
    rows += [
        run(images, folder / form, form, count, settings, sam) | {"name": form}
        for form in (ONE, THREE)
    ]
    for row in rows:
        row["of_generator"] = row["images_per_second"] / rows[0]["images_per_second"]
    return rows


def generator_alone(
    images: Path, count: int, settings: dict[str, Any], sam: str, device: str
) -> dict[str, Any]:
    """Return the images per second of the generator as an actor calls it, without reading or writing."""
    config = override(Config(), settings)
    recipe, checkpoint = make_recipe(config.masks, sam or None)
    weights = to_place(checkpoint) if checkpoint else None
    source = build_region_source(recipe, weights, config.masks.points_per_batch, device)
    in_memory = [read_image(path) for path in sorted(images.iterdir())[:16]]
    source(in_memory[0])  # the first call chooses kernels
    started = time.perf_counter()
    for k in range(count):
        source(in_memory[k % len(in_memory)])
    return {"images": count, "images_per_second": count / (time.perf_counter() - started)}


COLUMNS = (
    "images", "images_per_second", "of_generator", "first_shard_seconds", "driver_mb", "driver_cpu_ms",
)  # fmt: skip


def write_table(name: str, title: str, command: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write results/NAME.json and .md."""
    device = "cuda" if "cuda" in name else "cpu"
    stored = keep(name, {row["name"]: row | machine(device) | {"command": command} for row in rows})
    columns = [column for column in COLUMNS if any(column in row for row in rows)]
    body = [
        [str(row["name"]), *(_text(row[c]) if c in row else "" for c in columns)]
        for row in stored.values()
    ]
    facts = next(iter(stored.values()))
    lines = [
        f"# {title}",
        "",
        f"`{command}`; {facts['device']}, {facts['cores']} cores, load {facts['load']}.",
        "",
        *markdown(["", *(column.replace("_", " ") for column in columns)], body),
    ]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")


def _text(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:.4g}"


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--base", type=int, default=5_000)
    parser.add_argument("--s3-images", type=int, default=0)
    parser.add_argument("--forms", type=int, default=0, help="images of the comparison of stages")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        images, out, form, settings, sam = arguments.child
        print(json.dumps(one_run(images, out, form, json.loads(settings), sam)))
        return
    with tempfile.TemporaryDirectory() as text:
        command = "python experiments/bench/pool_scale.py "
        if arguments.forms:
            command += f"--forms {arguments.forms} --turns {arguments.turns}"
            title = "Masks of 2048x1024 on CPUs, one stage and three"
            write_table("pool_forms_cpu", title, command, forms(arguments, Path(text)))
        else:
            command += f"--images {arguments.images} --base {arguments.base}"
            command += f" --s3-images {arguments.s3_images}" if arguments.s3_images else ""
            rows = scale(arguments, Path(text))
            write_table("pool_scale_cpu", "Masks of many tiny images", command, rows)


if __name__ == "__main__":
    main()
