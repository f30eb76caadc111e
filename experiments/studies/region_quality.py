"""Measure how well regions follow the classes of real images: SAM, Felzenszwalb and a grid.

    python experiments/studies/region_quality.py --camvid DIR [--frames 12] [--sam CHECKPOINT]

The frames are evenly spaced frames of CamVid val. The masks of a segmenter are painted into one map,
smaller over larger, as in training. Pixels without a mask form one region. Void pixels (id 11) are
ignored. Measured over all frames together:

    purity           share of pixels that have the most frequent class of their region
    class recall     the same share within each class, mean over the classes
    boundary recall  share of pixels at a class border (a right or lower neighbour of another class,
                     neither void) with a region border within 2 pixels (a square of 5 x 5)

More regions make all three easier, so each segmenter is compared with a grid of as many cells. The
script writes results/region_quality.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from skimage.segmentation import felzenszwalb
from study_record import write_record

from sfss_ray.data.decoding import read_image
from sfss_ray.data.folders import read_labels
from sfss_ray.masks.bank.painting import paint_id_map, paint_order
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.networks import load_sam, shipped_small_sam

VOID = 11
TOLERANCE = 2  # pixels
RESULTS = Path(__file__).resolve().parent / "results"
# Settings of the small SAM for many masks of lower quality.
LOOSE = {"pred_iou_thresh": 0.1, "stability_score_thresh": 0.7, "box_nms_thresh": 0.7}
Segmenter = Callable[[np.ndarray], np.ndarray]  # uint8 (H, W, 3) -> region ids (H, W)


def by_felzenszwalb(scale: float, min_size: int) -> Segmenter:
    """Return Felzenszwalb's segmenter with these settings."""
    return lambda image: felzenszwalb(image, scale=scale, sigma=0.8, min_size=min_size) + 1


def by_grid(regions: float) -> Segmenter:
    """Return a segmenter that makes about `regions` equal cells, as square as possible."""

    def segment(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        rows = max(1, round(np.sqrt(regions * height / width)))
        columns = max(1, round(regions / rows))
        y, x = np.arange(height) * rows // height, np.arange(width) * columns // width
        return 1 + y[:, None] * columns + x[None, :]

    return segment


def by_sam(checkpoint: Path, settings: dict[str, Any]) -> Segmenter:
    """Return the automatic masks of a SAM checkpoint as a segmenter."""
    generator = AutomaticMaskGenerator(load_sam(checkpoint), output_mode="coco_rle", **settings)

    def segment(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        masks = generator.generate(image)
        rles = [
            {"counts": m["segmentation"]["counts"], "bbox": m["bbox"]}
            | {"height": height, "width": width}
            for m in masks
        ]
        order = paint_order([m["area"] for m in masks], "fine")
        return paint_id_map(rles, order, image_size=(height, width))

    return segment


def borders(ids: np.ndarray, void: int | None = None) -> np.ndarray:
    """Return (H, W) bool, true where the right or lower neighbour has another id and neither is void."""
    out = np.zeros(ids.shape, bool)
    for a, b in (
        ((slice(None), slice(0, -1)), (slice(None), slice(1, None))),
        ((slice(0, -1), slice(None)), (slice(1, None), slice(None))),
    ):
        differ = ids[a] != ids[b]
        if void is not None:
            differ &= (ids[a] != void) & (ids[b] != void)
        out[a] |= differ
    return out


def counts_of(ids: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the counts of one frame: pixels and right pixels by class, border and matched pixels."""
    names, region = np.unique(ids, return_inverse=True)
    labelled = labels != VOID
    table = np.bincount(
        region.reshape(ids.shape)[labelled] * VOID + labels[labelled], minlength=len(names) * VOID
    ).reshape(len(names), VOID)
    right = np.zeros(VOID, int)
    np.add.at(right, table.argmax(axis=1), table.max(axis=1))
    side = 2 * TOLERANCE + 1
    near = cv2.dilate(borders(ids).astype(np.uint8), np.ones((side, side), np.uint8)) > 0
    edges = borders(labels, VOID)
    return {
        "pixels": table.sum(axis=0),
        "right": right,
        "edges": int(edges.sum()),
        "met": int((edges & near).sum()),
        "regions": int((table.sum(axis=1) > 0).sum()),
        "covered": float((ids > 0).mean()),
    }


def score(segment: Segmenter, frames: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Return the row of one segmenter, over all frames."""
    start = time.process_time()
    maps = [segment(image) for image, _ in frames]
    seconds = time.process_time() - start
    counts = [counts_of(ids, labels) for ids, (_, labels) in zip(maps, frames, strict=True)]
    pixels, right = (
        np.sum([frame[name] for frame in counts], axis=0) for name in ("pixels", "right")
    )
    present = pixels > 0
    met, edges = (sum(frame[name] for frame in counts) for name in ("met", "edges"))
    return {
        "regions": round(float(np.mean([frame["regions"] for frame in counts])), 1),
        "covered": round(float(np.mean([frame["covered"] for frame in counts])), 3),
        "purity": round(float(right.sum() / pixels.sum()), 3),
        "class_recall": round(float(np.mean(right[present] / pixels[present])), 3),
        "boundary_recall": round(met / edges, 3),
        "cpu_seconds": round(seconds / len(frames), 2),
    }


def frames_of(camvid: Path, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return `count` evenly spaced images of CamVid val with their labels."""
    files = sorted((camvid / "images" / "val").glob("*.jpg"))
    chosen = [files[k] for k in np.linspace(0, len(files) - 1, count).round().astype(int)]
    labels = camvid / "labels" / "val"
    return [(read_image(f), read_labels(labels / f"{f.stem}.png")) for f in chosen]


def rows_of(
    frames: list[tuple[np.ndarray, np.ndarray]], sams: dict[str, Segmenter]
) -> dict[str, Any]:
    """Score each segmenter, and after it a grid of as many cells."""
    segmenters = {
        **sams,
        "Felzenszwalb 300/200": by_felzenszwalb(300, 200),
        "Felzenszwalb 100/100": by_felzenszwalb(100, 100),
    }
    rows = {}
    for name, segment in segmenters.items():
        rows[name] = score(segment, frames)
        rows[f"grid, as many as {name}"] = score(by_grid(rows[name]["regions"]), frames)
        print(name, json.dumps(rows[name]), flush=True)
    return rows


def text_of(facts: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    columns = list(next(iter(rows.values())))
    lines = [
        f"`{facts['command']}`: CamVid val, {facts['frames']} frames, 11 classes, without void."
        f" Measured on {facts['device']}, torch {facts['torch']}. The script defines the measures.",
        "",
        "| segmenter | " + " | ".join(c.replace("_", " ") for c in columns) + " |",
        "|" + "---|" * (len(columns) + 1),
    ]
    lines += [
        f"| {name} | " + " | ".join(str(row[c]) for c in columns) + " |"
        for name, row in rows.items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Score all segmenters and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    data = os.environ.get("SFSS_TEST_DATA")
    parser.add_argument("--camvid", type=Path, default=Path(data, "camvid") if data else None)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--sam", type=Path, help="also score this SAM checkpoint with its defaults")
    parser.add_argument(
        "--loose", action="store_true", help="also score the small SAM with many masks"
    )
    arguments = parser.parse_args()
    if arguments.camvid is None:
        parser.error("give --camvid, the folder with images/val and labels/val")
    torch.set_num_threads(1)
    shipped = shipped_small_sam()
    settings = json.loads(shipped.with_suffix(".json").read_text())["generator"]
    sams = {"shipped small SAM": by_sam(shipped, settings)}
    if arguments.loose:
        loose = settings | {"points_per_side": 32, **LOOSE}
        sams["shipped small SAM, loose"] = by_sam(shipped, loose)
    if arguments.sam:
        sams[arguments.sam.stem] = by_sam(arguments.sam, {})
    rows = rows_of(frames_of(arguments.camvid, arguments.frames), sams)
    facts = {
        "command": f"python experiments/studies/region_quality.py --frames {arguments.frames}",
        "frames": arguments.frames,
        "device": "one CPU thread",
        "torch": torch.__version__,
        "settings": settings,
    }
    RESULTS.mkdir(exist_ok=True)
    write_record(
        RESULTS / "region_quality.json",
        facts["command"],
        "cpu",
        [{"regions_source": source} | values for source, values in rows.items()],
        {"frames": arguments.frames, "settings": settings},
    )
    (RESULTS / "region_quality.md").write_text(text_of(facts, rows))


if __name__ == "__main__":
    main()
