"""Measure a trained small SAM on held-out scenes, choose its generator settings, and ship it.

    python experiments/measure_small_sam.py --run runs/small_sam --scenes 80

Copies small_sam.pt of the run into the package and writes small_sam.json beside it.
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

from sfss_ray.masks.sam import load_sam, shipped_small_sam
from sfss_ray.streets.scenes import Scene, render_scene

DOMAINS = ("game", "camera")
HELD_OUT_SEED = 1_000_003
POINTS_PER_SIDE = 16
POINTS_PER_BATCH = 16
SMALLEST_COUNTED = 16  # px; objects below it are not asked for
PRED_IOU_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.88)
STABILITY_THRESHOLDS = (0.7, 0.8, 0.85, 0.9, 0.92, 0.95)
NMS_THRESHOLDS = (0.5, 0.6, 0.7, 0.8)


def held_out_scene(index: int) -> Scene:
    """Scene `index` of the held-out set; the two domains take turns."""
    return render_scene(DOMAINS[index % 2], HELD_OUT_SEED, index // 2)


@torch.no_grad()
def prompt(sam: Sam, image: np.ndarray, xy: np.ndarray) -> tuple[Tensor, Tensor]:
    """Logits (N, 3, H, W) and predicted IoU (N, 3) for points (N, 2) in px of the image."""
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    points = torch.from_numpy(predictor.transform.apply_coords(xy, image.shape[:2])).float()
    answers = [
        predictor.predict_torch(
            few[:, None], torch.ones(len(few), 1), multimask_output=True, return_logits=True
        )
        for few in points.split(POINTS_PER_BATCH)
    ]
    return torch.cat([a[0] for a in answers]), torch.cat([a[1] for a in answers])


def iou_matrix(masks: Tensor, ids: np.ndarray) -> tuple[Tensor, Tensor]:
    """IoU (masks, ids) of bool masks (N, H, W) with each id of the map; areas of the ids in px."""
    names, areas = np.unique(ids[ids > 0], return_counts=True)
    names, areas = names[areas >= SMALLEST_COUNTED], areas[areas >= SMALLEST_COUNTED]
    regions = torch.from_numpy(ids.reshape(1, -1) == names[:, None]).float()
    flat = masks.flatten(1).float()
    common = flat @ regions.T
    union = flat.sum(1, keepdim=True) + regions.sum(1) - common
    return common / union, torch.from_numpy(areas).float()


def prompted_iou(sam: Sam, scenes: int, points: int = 24) -> dict[str, float]:
    """Mean best-of-3 IoU with object and part under points uniform over pixels of unseen scenes.

    object_each: the same for one point on each object, every object counting alike.
    """
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {"object": [], "part": [], "object_each": []}
    for scene in map(held_out_scene, range(scenes)):
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
        found["object"] += objects[:points]
        found["object_each"] += objects[points:]
        found["part"] += best_of_three(masks[:points], scene.parts, xy[:points])
    return {name: round(float(np.mean(values)), 4) for name, values in found.items()}


def best_of_three(masks: Tensor, ids: np.ndarray, xy: np.ndarray) -> list[float]:
    """IoU of the best of each point's masks (N, 3, H, W) with the region of `ids` it lies on."""
    target = torch.from_numpy(ids[None] == ids[xy[:, 1], xy[:, 0]][:, None, None])[:, None]
    common, union = (masks & target).sum((2, 3)), (masks | target).sum((2, 3))
    return (common / union).amax(dim=1).tolist()


@dataclass
class Candidates:
    """All masks of one scene's point grid before any filter, and how well they fit the truth."""

    masks: Tensor  # (N, H, W) bool
    boxes: Tensor
    predicted: Tensor
    stability: Tensor
    object_iou: Tensor  # (N, objects)
    part_iou: Tensor  # (N, parts)
    object_areas: Tensor
    labels: np.ndarray


def candidates_of(sam: Sam, scene: Scene) -> Candidates:
    height, width = scene.image.shape[:2]
    grid = build_point_grid(POINTS_PER_SIDE) * np.array([[width, height]])
    logits, predicted = prompt(sam, scene.image, grid)
    logits = logits.flatten(0, 1)
    masks = logits > sam.mask_threshold
    object_iou, areas = iou_matrix(masks, scene.instances)
    return Candidates(
        masks=masks,
        boxes=batched_mask_to_box(masks),
        predicted=predicted.flatten(),
        stability=calculate_stability_score(logits, sam.mask_threshold, 1.0),
        object_iou=object_iou,
        part_iou=iou_matrix(masks, scene.parts)[0],
        object_areas=areas,
        labels=scene.labels,
    )


def keep(found: Candidates, settings: dict[str, float]) -> Tensor:
    """Indices of the masks that the automatic mask generator keeps with these settings."""
    good = found.predicted > settings["pred_iou_thresh"]
    good &= found.stability >= settings["stability_score_thresh"]
    index = good.nonzero()[:, 0]
    order = nms(found.boxes[index].float(), found.predicted[index], settings["box_nms_thresh"])
    return index[order]


def fit_of(found: Candidates, settings: dict[str, float]) -> dict[str, float]:
    """How well the kept masks match the scene; every value but `masks` is in 0..1."""
    kept = keep(found, settings)
    count = float(len(kept))
    if not count:
        return {"recall": 0.0, "recall_each": 0.0, "precision": 0.0, "masks": 0.0}
    best = found.object_iou[kept].amax(dim=0)
    either = torch.cat([found.object_iou[kept], found.part_iou[kept]], dim=1).amax(dim=1)
    return {
        "recall": float((best * found.object_areas).sum() / found.object_areas.sum()),
        "recall_each": float(best.mean()),
        "precision": float(either.mean()),
        "masks": count,
    }


def purity_of(found: Candidates, settings: dict[str, float]) -> dict[str, float]:
    """Share of pixels under a mask, and of these the share whose region's main class is theirs.

    Where masks overlap the smaller one counts.
    """
    kept = keep(found, settings)
    masks = found.masks[kept].numpy()
    regions = np.zeros(found.labels.shape, dtype=np.int64)
    for name, mask in enumerate(sorted(masks, key=lambda mask: -mask.sum()), start=1):
        regions[mask] = name
    counted = (regions > 0) & (found.labels != 255)
    pairs = np.zeros((regions.max() + 1, 256), dtype=np.int64)
    np.add.at(pairs, (regions[counted], found.labels[counted]), 1)
    return {
        "coverage": float((regions > 0).mean()),
        "purity": float(pairs.max(axis=1).sum() / max(1, pairs.sum())),
    }


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]}


def choose_settings(scenes: list[Candidates]) -> dict[str, float]:
    """The thresholds with the best harmonic mean of recall (by area) and precision."""

    def quality(settings: dict[str, float]) -> float:
        fit = mean_of([fit_of(found, settings) for found in scenes])
        return 2 * fit["recall"] * fit["precision"] / max(1e-9, fit["recall"] + fit["precision"])

    names = ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh")
    grid = itertools.product(PRED_IOU_THRESHOLDS, STABILITY_THRESHOLDS, NMS_THRESHOLDS)
    return max((dict(zip(names, values, strict=True)) for values in grid), key=quality)


def measure(sam: Sam, scenes: int) -> dict[str, object]:
    """Scores on `scenes` held-out scenes; the settings are chosen on as many other ones."""
    tuning = [candidates_of(sam, held_out_scene(scenes + i)) for i in range(min(scenes, 24))]
    settings = choose_settings(tuning)
    del tuning
    rows: dict[str, list[dict[str, float]]] = {domain: [] for domain in DOMAINS}
    for index in range(scenes):
        found = candidates_of(sam, held_out_scene(index))
        row = fit_of(found, settings) | purity_of(found, settings)
        rows[DOMAINS[index % 2]].append(row)
    return {
        "held_out": {"seed": HELD_OUT_SEED, "scenes": scenes, "size": [128, 256]},
        "prompted_iou_best_of_3": prompted_iou(sam, scenes),
        "automatic_masks": {domain: mean_of(rows[domain]) for domain in DOMAINS},
        "generator": {
            "points_per_side": POINTS_PER_SIDE,
            **settings,
            "stability_score_offset": 1.0,
            "min_mask_region_area": 0,
        },
    }


def ship(run: Path, scenes: int, weights: Path) -> dict[str, object]:
    """Measure the run's weights, then put them and the facts where the package has them."""
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/small_sam"))
    parser.add_argument("--scenes", type=int, default=80, help="half of them of each domain")
    parser.add_argument(
        "--weights", type=Path, default=shipped_small_sam(), help="where to ship to"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(ship(arguments.run, arguments.scenes, arguments.weights), indent=2))


if __name__ == "__main__":
    main()
