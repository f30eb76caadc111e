"""A folder of masks of rectangles, with rows for images that lie beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from sfss_ray.masks.bank.schema import write_shard

SIZE = (20, 30)
RECIPE = {"source": "sam", "sam_type": "vit_b", "sam_sha256": "", "knobs": {"points_per_side": 32}}


def rectangle(top: int, left: int, height: int, width: int) -> np.ndarray:
    """A boolean mask of SIZE."""
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


MASKS = {
    "drive/a": [rectangle(0, 0, 10, 30), rectangle(5, 5, 10, 10), rectangle(6, 6, 2, 2)],
    "drive/b": [rectangle(0, 0, 20, 30)],
    "drive/c": [],
}


def record(mask: np.ndarray, score: float) -> dict[str, Any]:
    """A mask as it stands in a shard, encoded by pycocotools."""
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "counts": rle["counts"].decode(),
        "area": int(mask.sum()),
        "bbox": [int(v) for v in coco.toBbox(rle)],
        "predicted_iou": score,
        "stability_score": score / 2,
        "point": [1.5, 2.5],
        "crop_box": [0, 0, SIZE[1], SIZE[0]],
    }


def mask_row(
    image_id: str, path: Path, masks: list[dict[str, Any]], error: str | None = None
) -> dict[str, Any]:
    """A row of a shard; an image with an error has no size."""
    height, width = SIZE if error is None else (0, 0)
    row = {"image_id": image_id, "path": str(path), "masks": masks, "error": error}
    return row | {"height": height, "width": width}


def write_rectangles(root: Path) -> Path:
    """root/masks with the masks of three images in root/images, and of one that cannot be read."""
    rng, rows = np.random.default_rng(0), []
    (root / "images" / "drive").mkdir(parents=True)
    for image_id, masks in MASKS.items():
        path = root / "images" / f"{image_id}.png"
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)
        scores = rng.uniform(0.8, 1, len(masks))
        records = [record(*pair) for pair in zip(masks, scores, strict=True)]
        rows.append(mask_row(image_id, path, records))
    rows.append(mask_row("broken", root / "no.png", [], error="the file is empty (0 bytes)"))
    (root / "masks").mkdir()
    write_shard(root / "masks" / "masks-0.parquet", rows[:2], RECIPE)
    write_shard(root / "masks" / "masks-1.parquet", rows[2:], RECIPE)
    return root / "masks"
