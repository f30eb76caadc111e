"""Compare the automatic mask generator with those of segment_anything and transformers.

    OMP_NUM_THREADS=1 python experiments/bench/masks.py --data DIR [--parts ...] [--device cuda]
    OMP_NUM_THREADS=1 python experiments/bench/masks.py --data DIR --parts family --only small
    python experiments/bench/masks.py --parts profile --device cuda

The benchmark uses one compute thread. It writes results/masks_DEVICE.md and .json. Parts that are not
selected keep the rows of earlier runs. The text above the table states the simulated parts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from mask_agreement import SAME_CASES, agreement, same_masks
from mask_family import FAMILY, SIZES, family
from mask_images import CAMVID, CITYSCAPES, Options
from mask_memory import BATCHES, ENCODERS, memory_here, memory_of
from mask_models import OBJECTS, PASSING
from mask_profile import VARIANTS, profile, table
from mask_skipping import SKIPPED_FROM, skipping
from mask_speed import post_processing, small_image, whole_image
from records import RESULTS, keep, markdown

PARTS = ("same", "post", "image", "small", "memory", "bf16", "family", "skip", "profile")
GPU_BATCHES = (64, 256, 1024)
SIMULATED = (
    "Simulated: random weights have no masks of objects, so in `post`, `image` and `memory` the"
    f" decoder's low-resolution logits are replaced by {OBJECTS} drawn objects (smallest, middle and"
    f" largest under each point); in `image` and `memory` encoder, decoder and IoU head run with"
    f" random weights, the last layer of the IoU head shifted so that {100 * PASSING:.0f} % of the"
    " candidates pass the default .88; in `post` qualities are drawn with the same share. `small`,"
    " `bf16` and `same` replace nothing. CPU figures are seconds of processor time of one thread."
)


def measurements(
    options: Options, parts: list[str], only: str
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the name and the work of each row in the order of `parts`.

    `only` is the name of a row, or a part of several names.
    """
    every: list[tuple[str, str, Callable[[], Any]]] = [
        ("same", case, lambda case=case: same_masks(options, case)) for case in SAME_CASES
    ]
    for size in (CAMVID, CITYSCAPES):
        name = f"{size[1]}x{size[0]}"
        every.append(("post", name, lambda size=size: post_processing(options, size)))
    for kind, who, batch in _whole_images(options.device):
        work = lambda kind=kind, who=who, batch=batch: whole_image(options, kind, who, batch)  # noqa: E731
        every.append(("image", f"{kind} {who} {batch}", work))
    every.append(("small", "480x360", lambda: small_image(options)))
    if options.device == "cpu":
        every += [("memory", who, lambda who=who: memory_of(who)) for who in (*BATCHES, *ENCODERS)]
    every.append(("bf16", "small SAM, CamVid", lambda: agreement(options)))
    for size in SIZES:
        for kind in FAMILY:
            work = lambda kind=kind, size=size: family(options, kind, size)  # noqa: E731
            every.append(("family", f"{kind}, {size}", work))
    work = lambda: family(options, "sam2", "published", "drawn")  # noqa: E731
    every.append(("family", "sam2, published, drawn masks", work))
    for min_iou in SKIPPED_FROM:
        work = lambda min_iou=min_iou: skipping(options, min_iou)  # noqa: E731
        every.append(("skip", f"predicted IoU from {min_iou}", work))
    for kind, who, batch, variant in _profiles(options.device):
        arguments = (kind, who, batch, variant)
        work = lambda arguments=arguments: profile(options, *arguments)  # noqa: E731
        every.append(("profile", " ".join(map(str, arguments)), work))
    whole_name = any(name == only for _, name, _ in every)
    for selected in parts:
        for part, name, work in every:
            if part == selected and (name == only if whole_name else only in name):
                yield f"{part}: {name}", work


def _whole_images(device: str) -> Iterator[tuple[str, str, int]]:
    """Yield network, generator and points per batch. A CPU always uses small batches."""
    for kind in ("vit_b",) if device == "cpu" else ("vit_b", "vit_h"):
        yield kind, "stock", 64
        for batch in (64,) if device == "cpu" else GPU_BATCHES:
            yield kind, "fp32", batch
            yield kind, "bf16", batch


def _profiles(device: str) -> Iterator[tuple[str, str, int, str]]:
    """Yield network, precision, points per batch and variant. A CPU always uses small batches."""
    if device == "cpu":
        for variant in ("eager", "gpu_code", "compile"):
            yield "small", "fp32", 64, variant
        yield "sam2", "fp32", 64, "eager"
        yield "vit_b", "fp32", 64, "eager"
        return
    for who in ("fp32", "bf16"):
        yield "vit_h", who, 1024, "eager"
    for variant in VARIANTS[2:]:
        for batch in (256, 1024):
            yield "vit_h", "bf16", batch, variant


def text_of(rows: dict[str, dict[str, Any]], device: str) -> str:
    """Return the tables of all rows as Markdown."""
    parts = {part: _rows_of(rows, part) for part in PARTS}
    lines = ["# Masks: ours beside segment_anything's generator", ""]
    if device == "cpu":
        lines += ["No CUDA in this run: the rows for a GPU come from `--device cuda`.", ""]
    lines += [SIMULATED, ""]
    lines += _same_lines(parts["same"])
    lines += _table("Post-processing, 1024 points", parts["post"], _POST)
    lines += _image_lines(parts["image"])
    lines += _table("Small SAM, whole image", parts["small"], _SMALL)
    lines += _table(
        "Extra peak memory of 64 points at 2048x1024, and of the encoder, ViT-B",
        parts["memory"],
        _MEMORY,
    )
    lines += _table("bf16 against fp32 (both ours)", parts["bf16"], _BF16)
    lines += _table(
        "Networks of transformers with random weights, beside its mask-generation pipeline",
        parts["family"],
        _FAMILY,
    )
    lines += _table(
        "Prompts inside masks already found skipped, small SAM, CamVid, 1024 points",
        parts["skip"],
        _SKIP,
    )
    lines += table(parts["profile"])
    lines += ["## Machines", "", *sorted({_facts(row) for row in rows.values()})]
    return "\n".join(lines) + "\n"


_POST = ("stock_seconds", "ours_seconds", "times_faster", "stock_masks", "our_masks", "identical")
_IMAGE = (
    "seconds", "times_faster", "repeats", "masks", "images_per_second", "peak_gb",
    "encoder_seconds",
)  # fmt: skip
_SMALL = ("stock_seconds", "fp32_seconds", "bf16_seconds", "times_faster", "times_faster_bf16")
_MEMORY = ("extra_gb", "masks")
_BF16 = (
    "images", "fp32_masks", "bf16_masks", "count_difference_percent", "mean_iou",
    "share_below_iou_90", "worst_iou",
)  # fmt: skip
_FAMILY = (
    "reference_seconds", "our_seconds", "times_faster", "points", "images", "same_count",
    "reference_masks", "identical", "decoded_again_percent",
)  # fmt: skip
_SKIP = (
    "images", "seconds", "skipping_seconds", "times_faster", "masks", "skipping_masks",
    "masks_lost",
)  # fmt: skip
_SAME = (
    "images", "stock_failed", "stock_masks", "our_masks", "same_count", "same_order",
    "identical_percent", "iou_below_999", "worst_iou",
)  # fmt: skip


def _rows_of(rows: dict[str, dict[str, Any]], part: str) -> dict[str, dict[str, Any]]:
    return {
        name.split(": ", 1)[1]: row for name, row in rows.items() if name.startswith(f"{part}: ")
    }


def _table(title: str, rows: dict[str, dict[str, Any]], columns: tuple[str, ...]) -> list[str]:
    if not rows:
        return []
    body = [[name, *(_short(row.get(c, "")) for c in columns)] for name, row in rows.items()]
    return [f"## {title}", "", *markdown(["", *(c.replace("_", " ") for c in columns)], body)]


def _same_lines(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Return the table of agreement. `same count` and `same order` are numbers of images."""
    lines = _table("Same masks, fp32 (same count, same order: images)", rows, _SAME)
    for name, row in rows.items():
        lines.append(f"- {name}: `{json.dumps(row['settings'])}`")
    return [*lines, ""] if lines else []


def _image_lines(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Return the table of whole images, with ratios to the stock generator on the same machine."""
    table_rows = {}
    for name, row in rows.items():
        stock = rows.get(f"{name.split()[0]} stock 64, {row['device']}", {}).get("seconds")
        times = round(stock / row["seconds"], 1) if stock else ""
        table_rows[name] = {**row, "times_faster": times}
    return _table(
        "Whole image, 2048x1024, 1024 points (network, generator, batch, machine)",
        table_rows,
        _IMAGE,
    )


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.5f}" if 0.99 < value < 1 else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _facts(row: dict[str, Any]) -> str:
    return (
        f"- {row['device']}, {row['cores']} cores, {row['threads']} thread, torch {row['torch']};"
        f" `{row['command']}`"
    )


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("SFSS_TEST_DATA", "data"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--only", default="", help="name of a row, or a part of several names")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--images", type=int, default=40, help="number of CamVid images to compare")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--points-per-side", type=int, help="of the networks of transformers")
    parser.add_argument(
        "--stock-repeats",
        type=int,
        default=1,
        help="calls of the slow stock generator",
    )
    parser.add_argument(
        "--compared", type=Path, default=Path("runs/bench_masks"),
        help="folder for the results of compared images, which are reused",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="start no row after this time"
    )
    parser.add_argument("--memory-of", choices=(*BATCHES, *ENCODERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory_of:
        print(json.dumps(memory_here(arguments.memory_of)))
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA on this machine: the rows for a GPU were not measured")
    options = Options(
        arguments.data, arguments.device, arguments.images,
        arguments.repeats, arguments.stock_repeats, arguments.compared, arguments.points_per_side,
    )  # fmt: skip
    name = f"masks_{arguments.device}"
    command = f"python experiments/bench/masks.py --device {arguments.device}"
    deadline, failed = time.monotonic() + arguments.seconds, 0
    for row_name, work in measurements(options, arguments.parts, arguments.only):
        if time.monotonic() > deadline:
            print(
                f"{row_name}: not measured, the time limit of {arguments.seconds:g} s has passed",
                flush=True,
            )
            continue
        row = _row(work)
        if row is None:
            print(f"{row_name}: failed", flush=True)
            failed += 1
            continue
        row |= {"command": command}
        if row_name.startswith("image: "):  # one row per machine
            row_name += f", {row['device']}"
        print(row_name, json.dumps(row), flush=True)
        rows = keep(name, {row_name: row})
        (RESULTS / f"{name}.md").write_text(text_of(rows, arguments.device))
    if failed:
        sys.exit(f"{failed} rows failed")


def _row(work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """Return a row, or print the reason and return None, so that other rows can still be measured."""
    try:
        return work()
    except SystemExit as no_data:
        print(no_data)
    except Exception:
        traceback.print_exc(limit=-8)
    return None


if __name__ == "__main__":
    main()
