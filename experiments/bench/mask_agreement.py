"""Compare masks: sfss_ray with segment_anything in float32, and bfloat16 with float32."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import mask_models
import numpy as np
import torch
from mask_images import SMALL_SETTINGS, Options, camvid, cityscapes, quiet
from mask_models import calibrated_sam
from mask_speed import generator_of
from pycocotools import mask as coco
from records import machine
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam

from sfss_ray.masks.sam import generator
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.networks import load_sam, shipped_small_sam
from sfss_ray.runtime.run_folder import write_json

_CROPS = {"points_per_side": 8, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2}
SAME_CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "small SAM, CamVid": ("small", "camvid", {}),
    "small SAM, CamVid, crops and small regions": (
        "small",
        "camvid",
        _CROPS | {"min_mask_region_area": 100},
    ),
    "small SAM, Cityscapes": ("small", "cityscapes", {}),
    "small SAM, Cityscapes, crops and small regions": (
        "small",
        "cityscapes",
        _CROPS | {"min_mask_region_area": 400},
    ),
    "random ViT-B, CamVid": ("vit_b", "camvid", {}),
    "random ViT-B, Cityscapes": ("vit_b", "cityscapes", {}),
    "random ViT-B, CamVid, crops and small regions": (
        "vit_b",
        "camvid",
        # Masks of borders have nearly the same boxes. At the default .7, two of fifty would remain.
        _CROPS | {"min_mask_region_area": 100, "crop_nms_thresh": 1.0},
    ),
}
# Random weights predict no meaningful IoU, have soft borders, and give similar masks for all points.
# With these thresholds many masks pass. Few points suffice, because the encoder takes most of the time.
RANDOM_SETTINGS = {
    "points_per_side": 4,
    "pred_iou_thresh": 0.88,
    "stability_score_thresh": 0.2,
    "box_nms_thresh": 1.0,
}


def same_masks(options: Options, case: str) -> dict[str, Any]:
    """Compare both generators in float32 over the images of a case, with cached results."""
    kind, source, changes = SAME_CASES[case]
    if kind == "small":
        sam, settings = load_sam(shipped_small_sam(), device=options.device), SMALL_SETTINGS
    else:
        sam, settings = calibrated_sam(kind, options.device), RANDOM_SETTINGS
    settings = {**settings, **changes, "output_mode": "coco_rle"}
    images = camvid(options, options.images) if source == "camvid" else cityscapes(options)
    cache = ComparisonCache(options.compared / case, {**settings, **machine(options.device)})
    with _convolutions_in_float32():
        results = [
            cache.get(image, lambda image=image: _compare(sam, image, settings)) for image in images
        ]
    row = _summed(results)
    return {"images": len(images), **row, "settings": settings, **machine(options.device)}


class ComparisonCache:
    """Results of compared images, one file for each image, settings, code and machine.

    A case of a large network takes one to two hours.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]):
        self.folder, self.facts = folder, {k: v for k, v in facts.items() if k != "load"}

    def get(self, image: np.ndarray, compare: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the stored result of this image, or compare it."""
        parts = [json.dumps(self.facts, sort_keys=True).encode(), *_sources(), image.tobytes()]
        path = self.folder / f"{hashlib.sha256(b''.join(parts)).hexdigest()}.json"
        if not path.exists():
            write_json(path, compare())
            print(f"{self.folder.name}: compared one more image", flush=True)
        return json.loads(path.read_text())


@cache
def _sources() -> list[bytes]:
    """Return the source code of the generator and of the comparison."""
    files = [
        *Path(generator.__file__).parent.glob("*.py"),
        Path(__file__),
        Path(mask_models.__file__),
    ]
    return [file.read_bytes() for file in sorted(files)]


@contextmanager
def _convolutions_in_float32() -> Iterator[None]:
    """Disable TF32 in cuDNN, which would round the convolutions of the stock generator to 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _compare(sam: Sam, image: np.ndarray, settings: dict[str, Any]) -> dict[str, Any]:
    try:
        with quiet():
            stock = SamAutomaticMaskGenerator(sam, **settings).generate(image)
    except (RuntimeError, IndexError, KeyError):
        return {"stock_failed": 1}  # the stock generator fails where a crop has no mask
    ours = AutomaticMaskGenerator(sam, **settings).generate(image)
    order = [[(r["point_coords"], r["crop_box"]) for r in records] for records in (stock, ours)]
    overlaps = [
        1.0 if a["segmentation"] == b["segmentation"] else _iou(a, b)
        for a, b in zip(stock, ours, strict=False)
    ]
    identical = [a["segmentation"] == b["segmentation"] for a, b in zip(stock, ours, strict=False)]
    return {
        "stock_masks": len(stock),
        "our_masks": len(ours),
        "same_count": int(len(stock) == len(ours)),
        "same_order": int(order[0] == order[1]),
        "identical": sum(identical),
        "worst_iou": min(overlaps, default=1.0),
        "iou_below_999": sum(value < 0.999 for value in overlaps),
    }


def _iou(a: dict[str, Any], b: dict[str, Any]) -> float:
    overlaps = np.asarray(coco.iou([a["segmentation"]], [b["segmentation"]], [0]))
    return float(overlaps[0, 0])


def _summed(results: list[dict[str, Any]]) -> dict[str, Any]:
    compared = [one for one in results if "stock_failed" not in one]
    row: dict[str, Any] = {"stock_failed": len(results) - len(compared)}
    for name in compared[0] if compared else ():
        values = [one[name] for one in compared]
        row[name] = min(values) if name == "worst_iou" else sum(values)
    if compared:
        row["identical_percent"] = round(100 * row["identical"] / max(1, row["stock_masks"]), 2)
        # Images with another count or order can then be inspected one by one.
        row["images_that_differ"] = [
            k for k, one in enumerate(results) if not one.get("same_order", 1)
        ]
    return row


def agreement(options: Options) -> dict[str, Any]:
    """Compare bf16 with fp32 for the trained small SAM: counts, and the best IoU of each mask."""
    sam = load_sam(shipped_small_sam(), device=options.device)
    generators = [generator_of(sam, who, 64, **SMALL_SETTINGS) for who in ("fp32", "bf16")]
    counts, best = np.zeros(2, dtype=int), []
    for image in camvid(options, options.images):
        exact, fast = ([r["segmentation"] for r in g.generate(image)] for g in generators)
        counts += len(exact), len(fast)
        if exact:
            overlaps = coco.iou(exact, fast, [0] * len(fast)) if fast else np.zeros((len(exact), 1))
            best += np.asarray(overlaps).max(axis=1).tolist()
    return {
        "images": options.images,
        "fp32_masks": int(counts[0]),
        "bf16_masks": int(counts[1]),
        "count_difference_percent": round(100 * abs(counts[1] - counts[0]) / counts[0], 2),
        "mean_iou": float(np.mean(best)),
        "share_below_iou_90": float(np.mean(np.array(best) < 0.9)),
        "worst_iou": float(np.min(best)),
        **machine(options.device),
    }
