"""Output files of segment-anything's amg.py with masks of ellipses, for the tests of imports."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from segment_anything.utils.amg import coco_encode_rle, mask_to_rle_pytorch

from sfss_ray import import_masks
from sfss_ray.config import Config, override
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.summary import MaskSummary

SIZE = (24, 40)
HEADER = (
    "id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,predicted_iou,"
    "stability_score,crop_box_x0,crop_box_y0,crop_box_w,crop_box_h"
)


def ellipses(seed: int, number: int) -> list[np.ndarray]:
    """Return overlapping ellipses, (H, W) bool each; some reach the edges."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    centres, radii = rng.uniform(0, SIZE, (number, 2)), rng.uniform(2, 12, (number, 2))
    return [
        ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
        for (cy, cx), (ry, rx) in zip(centres, radii, strict=True)
    ]


MASKS = {f"frame{i}": ellipses(i, i) for i in range(5)}  # frame0 has no mask


def record(mask: np.ndarray, score: float = 0.9) -> dict[str, Any]:
    """Return a record as SamAutomaticMaskGenerator does with output_mode binary_mask."""
    ys, xs = np.nonzero(mask)
    box = [xs.min(), ys.min(), np.ptp(xs), np.ptp(ys)] if len(ys) else [0, 0, 0, 0]
    return {
        "segmentation": mask,
        "area": int(mask.sum()),
        "bbox": [int(v) for v in box],
        "predicted_iou": score,
        "point_coords": [[1.5, 2.25]],
        "stability_score": score / 2,
        "crop_box": [0, 0, mask.shape[1], mask.shape[0]],
    }


def write_folder(path: Path, records: list[dict[str, Any]]) -> None:
    """Write the files of an image as amg.py does by default."""
    path.mkdir(parents=True)
    with (path / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(HEADER.split(","))
        for k, mask in enumerate(records):
            cv2.imwrite(str(path / f"{k}.png"), np.uint8(255) * mask["segmentation"])
            scores = [mask["predicted_iou"], mask["stability_score"]]
            row = [k, mask["area"], *mask["bbox"], *mask["point_coords"][0], *scores]
            table.writerow([*row, *mask["crop_box"]])


def write_json(path: Path, records: list[dict[str, Any]]) -> None:
    """Write the file of an image as amg.py does with --convert-to-rle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.json").write_text(json.dumps([as_rle(r) for r in records]))


def as_rle(mask: dict[str, Any]) -> dict[str, Any]:
    """Return a record with segment-anything's own encoding of its mask."""
    runs = mask_to_rle_pytorch(torch.from_numpy(mask["segmentation"])[None])[0]
    return mask | {"segmentation": coco_encode_rle(runs)}


WRITERS = {"png": write_folder, "json": write_json}
Writer = Callable[[Path, list[dict[str, Any]]], None]


def put_images(folder: Path, *image_ids: str) -> Path:
    """Write grey images of SIZE; return the folder."""
    for image_id in image_ids:
        (folder / image_id).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIZE[1], SIZE[0]), (50, 60, 70)).save(folder / f"{image_id}.png")
    return folder


def put_masks(folder: Path, write: Writer, *image_ids: str) -> Path:
    """Write the MASKS of images, default all, as amg.py does; return the folder."""
    for image_id in image_ids or MASKS:
        write(folder / image_id, [record(mask) for mask in MASKS[Path(image_id).name]])
    return folder


def import_quietly(source: Path, images: Path, folder: Path, **settings) -> MaskSummary:
    """Import masks without progress lines; `settings` are those of `masks` in the config."""
    config = override(Config(), {f"masks.{name}": setting for name, setting in settings.items()})
    return import_masks(source, images, folder, config=config, progress=str)


def refuse_frame2(source: Path, images: Path, folder: Path, reason: str) -> None:
    """Import MASKS, and check that only frame2 fails, with a reason of one line."""
    summary = import_quietly(source, images, folder)
    assert set(summary.errors) == {"frame2"}
    assert re.search(reason, summary.errors["frame2"]), summary.errors["frame2"]
    assert "\n" not in summary.errors["frame2"]
    assert MaskStore(folder).load("frame2")["masks"] == []
    assert summary.masks == 8
