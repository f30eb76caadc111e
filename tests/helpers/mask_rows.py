"""Rows of shards with masks of ellipses, and id maps by painting whole masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pycocotools import mask as coco

from sfss_ray.masks.bank.schema import shard_name, write_shard

RECIPE = {"source": "felzenszwalb", "sam_type": "", "knobs": {"felzenszwalb_scale": 300.0}}
SIZE = (20, 30)


def ellipses(seed: int, number: int = 7) -> list[np.ndarray]:
    """Return overlapping ellipses, (H, W) bool each."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    masks = []
    for _ in range(number):
        cy, cx = rng.uniform(0, SIZE[0]), rng.uniform(0, SIZE[1])
        ry, rx = rng.uniform(3, 9, 2)
        masks.append(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1)
    return masks


def mask_record(mask: np.ndarray) -> dict:
    """Return a record of the `masks` column, encoded by pycocotools."""
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "counts": rle["counts"].decode(),
        "area": int(mask.sum()),
        "bbox": [int(v) for v in coco.toBbox(rle)],
        "predicted_iou": 0.5,
        "stability_score": 0.25,
        "point": [1.5, 2.5],
        "crop_box": [0, 0, SIZE[1], SIZE[0]],
    }


def image_row(image_id: str, masks: list[np.ndarray], error: str | None = None) -> dict:
    """Return the row of an image; with an error it has no size."""
    height, width = SIZE if error is None else (0, 0)
    return {
        "image_id": image_id,
        "path": f"/images/{image_id}.png",
        "height": height,
        "width": width,
        "masks": [mask_record(mask) for mask in masks],
        "error": error,
    }


def sample_rows() -> list[dict]:
    """Return more rows than a row group has: with masks, without masks, and with an error."""
    rows = [image_row(f"drive/{i:02}", ellipses(i)) for i in range(18)]
    broken = image_row("broken", [], error="the file is empty (0 bytes)")
    return [*rows, image_row("empty", []), broken]


def write_rows(folder: Path, rows: list[dict], recipe=RECIPE) -> Path:
    """Write rows as one shard; return its path."""
    path = folder / shard_name(row["image_id"] for row in rows)
    write_shard(path, rows, recipe)
    return path


def painted_row(row: dict, painting: str) -> np.ndarray:
    """Return the id map by decoding every mask with pycocotools and painting it whole."""
    canvas = np.zeros(SIZE, np.int32)
    masks = row["masks"]
    sign = -1 if painting == "fine" else 1
    for k in sorted(range(len(masks)), key=lambda k: (sign * masks[k]["area"], k)):
        mask = coco.decode({"counts": masks[k]["counts"].encode(), "size": list(SIZE)})
        canvas[mask > 0] = k + 1
    return canvas
