"""Masks lost and time saved where prompts inside masks already found are skipped. See masks.py."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from mask_images import SMALL_SETTINGS, Options, camvid
from pycocotools import mask as coco
from records import machine, seconds_of

from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.networks import load_sam, shipped_small_sam

SKIPPED_FROM = (0.5, 0.7, 0.8, 0.9)
_POINTS_PER_SIDE = 32
_SAME_OBJECT = 0.75  # IoU from which on two masks are of the same object


def skipping(options: Options, min_iou: float) -> dict[str, Any]:
    """Compare the small SAM on CamVid with and without skipping; nothing is replaced."""
    every, every_seconds = _masks(options, None)
    fewer, seconds = _masks(options, min_iou)
    lost = sum(_lost(a, b) for a, b in zip(every, fewer, strict=True))
    return {
        "images": len(every),
        "seconds": every_seconds / len(every),
        "skipping_seconds": seconds / len(every),
        "times_faster": round(every_seconds / seconds, 2),
        "masks": sum(map(len, every)),
        "skipping_masks": sum(map(len, fewer)),
        "masks_lost": lost,
        **machine(options.device),
    }


@cache
def _masks(options: Options, min_iou: float | None) -> tuple[list[list[Any]], float]:
    """Return the RLEs of each image, and the seconds of all images."""
    sam = load_sam(shipped_small_sam(), device=options.device)
    settings = {**SMALL_SETTINGS, "points_per_side": _POINTS_PER_SIDE}
    generator = AutomaticMaskGenerator(
        sam, output_mode="coco_rle", skip_covered_iou=min_iou, **settings
    )
    images = camvid(options, options.images)
    generator.generate(images[0])  # the first call is slower
    seconds, records = seconds_of(lambda: [generator.generate(i) for i in images], options.device)
    return [[record["segmentation"] for record in one] for one in records], seconds


def _lost(every: list[Any], fewer: list[Any]) -> int:
    """Return how many masks have no counterpart among the fewer."""
    if not every or not fewer:
        return len(every)
    overlaps = np.asarray(coco.iou(every, fewer, [0] * len(fewer)))
    return int((overlaps.max(axis=1) < _SAME_OBJECT).sum())
