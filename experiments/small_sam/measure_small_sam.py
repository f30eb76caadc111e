"""Measure a trained small SAM on held-out scenes, choose its settings, and copy it into the package.

    python experiments/small_sam/measure_small_sam.py --run runs/small_sam --scenes 80

The script copies small_sam.pt of the run into the package and writes small_sam.json beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from segment_anything.utils.amg import (
    batched_mask_to_box,
    build_point_grid,
    calculate_stability_score,
)
from torch import Tensor
from torchvision.ops import nms

from sfss_ray.masks.sam.networks import load_sam, shipped_small_sam
from sfss_ray.streets.scenes import Scene, render_scene

DOMAINS = ("game", "camera")
CHECK_SEED = 1_000_003  # scenes for monitoring the training and for choosing settings
HELD_OUT_SEED = 2_000_003  # scenes for the reported scores only
POINTS_PER_SIDE = 16
POINTS_PER_BATCH = 16
SMALLEST_COUNTED = 16  # px; smaller objects are ignored
TUNING_SCENES = range(4, 16)
PRED_IOU_THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
STABILITY_OFFSETS = (
    0.1,
    0.2,
    0.4,
    1.0,
)  # its logits are flatter than those of large SAMs
STABILITY_THRESHOLDS = (0.7, 0.85)
NMS_THRESHOLDS = (0.5, 0.7)


def unseen_scene(seed: int, index: int) -> Scene:
    """Return scene `index` of a set that is not used for training. The domains alternate."""
    return render_scene(DOMAINS[index % 2], seed, index // 2)


@torch.no_grad()
def prompt(sam: Sam, image: np.ndarray, xy: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return logits (N, 3, H, W) and predicted IoU (N, 3) for points (N, 2) in px of the image."""
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    scaled = predictor.transform.apply_coords(xy, image.shape[:2])
    points = torch.from_numpy(scaled).float().to(sam.device)
    outputs = [
        predictor.predict_torch(
            chunk[:, None],
            torch.ones(len(chunk), 1, device=chunk.device),
            multimask_output=True,
            return_logits=True,
        )
        for chunk in points.split(POINTS_PER_BATCH)
    ]
    logits = torch.cat([output[0] for output in outputs])
    return logits.cpu(), torch.cat([output[1] for output in outputs]).cpu()


def iou_matrix(masks: Tensor, ids: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the IoU (masks, ids) of masks (N, H, W) with each id of the map, and areas in px."""
    names, areas = np.unique(ids[ids > 0], return_counts=True)
    names, areas = names[areas >= SMALLEST_COUNTED], areas[areas >= SMALLEST_COUNTED]
    regions = torch.from_numpy(ids.reshape(1, -1) == names[:, None]).float()
    flat = masks.flatten(1).float()
    common = flat @ regions.T
    union = flat.sum(1, keepdim=True) + regions.sum(1) - common
    return common / union, torch.from_numpy(areas).float()


def prompted_iou(sam: Sam, seed: int, scenes: int, points: int = 24) -> dict[str, float]:
    """Return the mean best-of-3 IoU with object and part under random points of unseen scenes.

    object_each is the mean over one point on each object, with equal weight for all objects.
    """
    rng = np.random.default_rng(0)
    ious: dict[str, list[float]] = {"object": [], "part": [], "object_each": []}
    for scene in (unseen_scene(seed, index) for index in range(scenes)):
        ys, xs = np.nonzero(scene.instances)
        uniform = rng.integers(0, len(ys), points)
        names, areas = np.unique(scene.instances[ys, xs], return_counts=True)
        each = [
            rng.choice(np.flatnonzero(scene.instances[ys, xs] == name))
            for name in names[areas >= SMALLEST_COUNTED]
        ]
        chosen = np.concatenate([uniform, each]).astype(int)
        xy = np.stack([xs[chosen], ys[chosen]], axis=1)
        masks = prompt(sam, scene.image, xy)[0] > 0
        objects = best_of_three(masks, scene.instances, xy)
        ious["object"] += objects[:points]
        ious["object_each"] += objects[points:]
        ious["part"] += best_of_three(masks[:points], scene.parts, xy[:points])
    return {name: round(float(np.mean(values)), 4) for name, values in ious.items()}


def best_of_three(masks: Tensor, ids: np.ndarray, xy: np.ndarray) -> list[float]:
    """Return the IoU of the best of the masks (N, 3, H, W) of each point with the region below it."""
    target = torch.from_numpy(ids[None] == ids[xy[:, 1], xy[:, 0]][:, None, None])[:, None]
    common, union = (masks & target).sum((2, 3)), (masks | target).sum((2, 3))
    return (common / union).amax(dim=1).tolist()


@dataclass
class Candidates:
    """All unfiltered masks of the point grid of a scene, with their fit to ground truth."""

    scene: Scene
    masks: Tensor  # (N, H, W) bool
    boxes: Tensor
    predicted: Tensor
    stability: dict[float, Tensor]  # by offset
    object_iou: Tensor  # (N, objects)
    part_iou: Tensor  # (N, parts)
    object_areas: Tensor


def candidates_of(sam: Sam, scene: Scene) -> Candidates:
    """Prompt a scene with the point grid."""
    height, width = scene.image.shape[:2]
    grid = build_point_grid(POINTS_PER_SIDE) * np.array([[width, height]])
    logits, predicted = prompt(sam, scene.image, grid)
    logits = logits.flatten(0, 1)
    masks = logits > sam.mask_threshold
    object_iou, areas = iou_matrix(masks, scene.instances)
    return Candidates(
        scene=scene,
        masks=masks,
        boxes=batched_mask_to_box(masks),
        predicted=predicted.flatten(),
        stability={
            offset: calculate_stability_score(logits, sam.mask_threshold, offset)
            for offset in STABILITY_OFFSETS
        },
        object_iou=object_iou,
        part_iou=iou_matrix(masks, scene.parts)[0],
        object_areas=areas,
    )


def filtered(candidates: Candidates, settings: dict[str, float]) -> Tensor:
    """Return the indices of the masks that the automatic mask generator keeps with these settings."""
    good = candidates.predicted > settings["pred_iou_thresh"]
    stability = candidates.stability[settings["stability_score_offset"]]
    good &= stability >= settings["stability_score_thresh"]
    index = good.nonzero()[:, 0]
    order = nms(
        candidates.boxes[index].float(), candidates.predicted[index], settings["box_nms_thresh"]
    )
    return index[order]


def fit_of_masks(candidates: Candidates, chosen_masks: Tensor) -> dict[str, float]:
    """Return the fit of masks to the scene. All values except `masks` are in 0..1.

    recall: IoU of the best mask of each object, weighted by area. recall_each: unweighted.
    precision: IoU of each mask with the object or part that it fits best, unweighted.
    """
    if not len(chosen_masks):
        return {"recall": 0.0, "recall_each": 0.0, "precision": 0.0, "masks": 0.0}
    best = candidates.object_iou[chosen_masks].amax(dim=0)
    either = torch.cat(
        [candidates.object_iou[chosen_masks], candidates.part_iou[chosen_masks]], dim=1
    ).amax(dim=1)
    return {
        "recall": float((best * candidates.object_areas).sum() / candidates.object_areas.sum()),
        "recall_each": float(best.mean()),
        "precision": float(either.mean()),
        "masks": float(len(chosen_masks)),
    }


def fit_of_map(candidates: Candidates, chosen_masks: Tensor) -> dict[str, float]:
    """Return the fit of the map of regions to the scene, smaller masks painted over larger, in 0..1.

    coverage: share of pixels in a region. purity: share of these that have the main class of their
    region. map_recall: IoU of the best region of each object, weighted by area.
    """
    regions = np.zeros(candidates.scene.labels.shape, dtype=np.int64)
    masks = candidates.masks[chosen_masks].numpy()
    for name, mask in enumerate(sorted(masks, key=lambda mask: -mask.sum()), start=1):
        regions[mask] = name
    count = len(masks) + 1
    classes = overlaps(regions, candidates.scene.labels, count)[1:, :255]
    objects = overlaps(regions, candidates.scene.instances, count)
    areas = objects.sum(axis=0)
    union = objects.sum(axis=1, keepdims=True) + areas - objects
    best = (objects / np.maximum(union, 1))[1:, 1:].max(axis=0, initial=0.0)
    return {
        "coverage": float((regions > 0).mean()),
        "purity": float(classes.max(axis=1, initial=0).sum() / max(1, classes.sum())),
        "map_recall": float((best * areas[1:]).sum() / areas[1:].sum()),
    }


def overlaps(regions: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """Return the number of pixels (regions, ids) that a region and an id share."""
    width = max(256, int(ids.max()) + 1)
    flat = np.bincount((regions * width + ids).ravel(), minlength=count * width)
    return flat.reshape(count, width)


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each value over the rows."""
    return {name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]}


def choose_settings(scenes: list[Candidates]) -> dict[str, float]:
    """Return the thresholds with the best harmonic mean of map recall and purity."""

    def quality(settings: dict[str, float]) -> float:
        fit = mean_of(
            [fit_of_map(candidates, filtered(candidates, settings)) for candidates in scenes]
        )
        return 2 * fit["map_recall"] * fit["purity"] / max(1e-9, fit["map_recall"] + fit["purity"])

    choices = {
        "pred_iou_thresh": PRED_IOU_THRESHOLDS,
        "stability_score_thresh": STABILITY_THRESHOLDS,
        "stability_score_offset": STABILITY_OFFSETS,
        "box_nms_thresh": NMS_THRESHOLDS,
    }
    grid = itertools.product(*choices.values())
    return max((dict(zip(choices, values, strict=True)) for values in grid), key=quality)


def measure(sam: Sam, scenes: int) -> dict[str, object]:
    """Score `scenes` held-out scenes with settings that are chosen on other scenes."""
    tuning = [candidates_of(sam, unseen_scene(CHECK_SEED, i)) for i in TUNING_SCENES]
    settings = choose_settings(tuning)
    del tuning
    rows: dict[str, list[dict[str, float]]] = {domain: [] for domain in DOMAINS}
    for index in range(scenes):
        candidates = candidates_of(sam, unseen_scene(HELD_OUT_SEED, index))
        chosen_masks = filtered(candidates, settings)
        rows[DOMAINS[index % 2]].append(
            fit_of_masks(candidates, chosen_masks) | fit_of_map(candidates, chosen_masks)
        )
    return {
        "held_out": {"seed": HELD_OUT_SEED, "scenes": scenes, "size": [128, 256]},
        "prompted_iou_best_of_3": prompted_iou(sam, HELD_OUT_SEED, scenes),
        "automatic_masks": {domain: mean_of(rows[domain]) for domain in DOMAINS},
        "generator": {
            "points_per_side": POINTS_PER_SIDE,
            **settings,
            "min_mask_region_area": 0,
        },
    }


def ship(run: Path, scenes: int, weights: Path) -> dict[str, object]:
    """Measure the weights of a run, then copy them and their facts into the package."""
    source = run / "small_sam.pt"
    sam = load_sam(source, "small")
    facts: dict[str, object] = {
        "training": json.loads((run / "training.json").read_text()),
        "parameters": sum(parameter.numel() for parameter in sam.parameters()),
        **measure(sam, scenes),
        "versions": {name: version(name) for name in ("torch", "segment_anything", "numpy")},
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
    }
    temporary = weights.with_suffix(".tmp")
    shutil.copyfile(source, temporary)
    os.replace(temporary, weights)
    weights.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def main() -> None:
    """Measure and ship from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/small_sam"))
    parser.add_argument("--scenes", type=int, default=80, help="half of them from each domain")
    parser.add_argument("--weights", type=Path, default=shipped_small_sam(), help="destination")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(ship(arguments.run, arguments.scenes, arguments.weights), indent=2))


if __name__ == "__main__":
    main()
