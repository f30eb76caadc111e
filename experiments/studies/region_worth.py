"""What regions are worth before any training: the teacher's pseudo-labels after the masks' vote.

    python experiments/studies/region_worth.py [--scenes 40]

Drawn camera scenes; the teacher is the shipped source model with half of the target's BatchNorm
statistics and its mean over six views, as a training on streets can have it. By source of regions: how
many, what they cover, how pure they are, and the mIoU of the pseudo-labels for some weights of the vote
and powers of the prior. Labels are used to report alone. Writes results/region_worth.json and .md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation import Job, make_pair, use_one_thread, with_target_statistics
from ablation_rows import STATISTICS
from torch import Tensor

from sfss_ray.cli import run_guarded
from sfss_ray.config import Config, override
from sfss_ray.evaluation.confusion_matrix import ConfusionMatrix
from sfss_ray.masks.bank.painting import paint_id_map, paint_order
from sfss_ray.masks.regions import build_region_source, make_recipe
from sfss_ray.method.contrast_net import ContrastNet
from sfss_ray.method.mask_vote import ClassPrior, relabel
from sfss_ray.method.teacher_view import average_views
from sfss_ray.runtime.run_folder import write_json
from sfss_ray.streets.default import TARGET_SEED, embedded_config
from sfss_ray.streets.scenes import Scene, render_scene

RESULTS = Path(__file__).parent / "results"
VOTES = ((0.5, 0.25), (1.0, 0.25), (1.0, 0.5))  # (vote_weight, prior_power)
VIEWS = {"train.loss.teacher_scales": [0.75, 1.0, 1.5], "train.loss.teacher_flip": True}
BATCH = 8
LOOSER = {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.7}
LOOSEST = {"pred_iou_thresh": 0.4, "stability_score_thresh": 0.7, "box_nms_thresh": 0.7}
Segmenter = Callable[[Scene], np.ndarray]  # region ids (H, W), 0 = none


def segmenters() -> Iterator[tuple[str, Segmenter]]:
    """Names and sources of regions."""
    many = {"points_per_side": 32}
    yield "none", lambda scene: np.zeros_like(scene.instances)
    yield "Felzenszwalb, as it is used", _by_config({"regions": "felzenszwalb"})
    yield "Felzenszwalb 100/250", _felzenszwalb(100, 250)
    yield "Felzenszwalb 50/60", _felzenszwalb(50, 60)
    yield "small SAM, as it is used", _by_config({})
    yield "small SAM, 32x32 points", _by_config(many)
    yield "small SAM, 32x32 points, loosest cuts", _by_config(many | LOOSEST)
    yield "small SAM, a layer of crops, looser cuts", _by_config({"crop_n_layers": 1} | LOOSER)
    yield "true objects", lambda scene: scene.instances
    yield "true parts", lambda scene: scene.parts


def _felzenszwalb(scale: float, min_size: int) -> Segmenter:
    """Its min_size is stated for images of 480x360 px, as in the config."""
    knobs = {"felzenszwalb_scale": scale, "felzenszwalb_min_size": min_size}
    return _by_config({"regions": "felzenszwalb"} | knobs)


def _by_config(knobs: dict[str, Any]) -> Segmenter:
    """The embedded default's regions with these knobs of `masks`."""
    config = override(embedded_config(), {f"masks.{name}": value for name, value in knobs.items()})
    recipe, checkpoint = make_recipe(config.masks, None)
    find = build_region_source(recipe, checkpoint, config.masks.points_per_batch, "cpu")

    def segment(scene: Scene) -> np.ndarray:
        height, width = scene.image.shape[:2]
        records = [{**r, "height": height, "width": width} for r in find(scene.image)]
        order = paint_order([record["area"] for record in records], "fine")
        return paint_id_map(records, order, image_size=(height, width))

    return segment


@torch.no_grad()
def teacher_probabilities(network: Any, images: Tensor, config: Config) -> Tensor:
    """(N, C, H, W), the mean over views."""
    teacher, parts = ContrastNet(network, config.train).eval(), []
    for some in images.split(BATCH):
        plain = network.upsample(teacher(some)[0], some.shape[-2:]).softmax(1)
        parts.append(average_views(teacher, some, plain, config.train.loss))
    return torch.cat(parts)


def fit_of_regions(ids: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Regions an image, share of pixels covered, share of these whose region's main class is theirs."""
    regions, right, counted = 0, 0, 0
    for region_map, label_map in zip(ids, labels, strict=True):
        inside = (region_map > 0) & (label_map != 255)
        _, index = np.unique(region_map[inside], return_inverse=True)
        table = np.bincount(index * 256 + label_map[inside], minlength=256)
        table = np.pad(table, (0, -len(table) % 256)).reshape(-1, 256)
        regions += len(np.unique(region_map[region_map > 0]))
        right, counted = right + table.max(1).sum(), counted + table.sum()
    return {
        "regions": regions / len(ids),
        "covered": float((ids > 0).mean()),
        "purity": float(right / counted) if counted else None,
    }


def measure(scenes: list[Scene], probabilities: Tensor, segment: Segmenter) -> dict[str, Any]:
    """One row."""
    ids = np.stack([segment(scene) for scene in scenes]).astype(np.int64)
    labels = np.stack([scene.labels for scene in scenes])
    prior = ClassPrior(probabilities.shape[1])
    prior.update(probabilities.sum((0, 2, 3)))
    row: dict[str, Any] = fit_of_regions(ids, labels)
    for weight, power in VOTES:
        vote = {"mask_vote": "pooled", "vote_weight": weight, "prior_power": power}
        config = override(Config(), {f"train.loss.{name}": v for name, v in vote.items()})
        found = relabel(probabilities, torch.from_numpy(ids), prior.share(), config.train.loss)[0]
        matrix = ConfusionMatrix(probabilities.shape[1])
        matrix.add(labels, found.numpy())
        row[f"w {weight}, p {power}"] = matrix.miou()
    return row


def table(rows: dict[str, dict[str, Any]], scenes: int) -> str:
    """Markdown."""
    names = list(next(iter(rows.values())))
    lines = [
        f"`python experiments/studies/region_worth.py --scenes {scenes}`: mIoU in percent of"
        f" pseudo-labels on {scenes} drawn camera scenes, by weight of the vote (w)"
        " and power of the prior (p).",
        "",
        "| regions | an image | " + " | ".join(names[1:]) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for name, row in rows.items():
        purity = f"{row['purity']:.3f}" if row["regions"] else ""
        shape = f"{row['regions']:.0f} | {row['covered']:.2f} | {purity}"
        scores = " | ".join(f"{row[each]:.1f}" for each in names[3:])
        lines.append(f"| {name} | {shape} | {scores} |")
    return "\n".join(lines) + "\n"


def run(arguments: argparse.Namespace) -> None:
    """Measure every source and write the table after each."""
    use_one_thread()
    pair = make_pair(arguments)
    teacher = with_target_statistics(Job(pair, STATISTICS, 0, "cpu"))
    scenes = [render_scene("camera", TARGET_SEED, index) for index in range(arguments.images)]
    images = torch.stack([torch.from_numpy(s.image.copy()).permute(2, 0, 1) / 255 for s in scenes])
    probabilities = teacher_probabilities(teacher, images, override(pair.config, VIEWS))
    rows: dict[str, dict[str, Any]] = {}
    for name, segment in segmenters():
        rows[name] = measure(scenes, probabilities, segment)
        print(table({name: rows[name]}, len(scenes)).splitlines()[-1], flush=True)
        write_json(arguments.results / "region_worth.json", rows)
        (arguments.results / "region_worth.md").write_text(table(rows, len(scenes)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", dest="images", type=int, default=40)
    parser.add_argument("--work", type=Path, default=Path("runs/region_worth"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.set_defaults(pair="streets")
    arguments = parser.parse_args()
    sys.exit(run_guarded(lambda: run(arguments)))
