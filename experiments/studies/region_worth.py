"""Measure the gain of pseudo-labels from the vote in regions, before any training.

    python experiments/studies/region_worth.py [--scenes 40]

The images are drawn camera scenes. The teacher is the shipped source model with half of the target's
BatchNorm statistics, averaged over six views. For each source of regions the table states the number,
coverage and purity of the regions, and the mIoU of the pseudo-labels for several vote weights and prior
powers. Labels are used for reporting only. The script writes results/region_worth.json and .md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation import make_pair
from ablation_rows import STATISTICS
from ablation_run import Job, use_one_thread, with_target_statistics
from study_record import write_record
from torch import Tensor

from sfss_ray.cli import run_guarded
from sfss_ray.config import Config, override
from sfss_ray.evaluation.confusion_matrix import ConfusionMatrix
from sfss_ray.masks.bank.painting import paint_id_map, paint_order
from sfss_ray.masks.regions import build_region_source, make_recipe
from sfss_ray.method.contrast_net import ContrastNet
from sfss_ray.method.mask_evidence import Evidence
from sfss_ray.method.mask_vote import ClassPrior, relabel
from sfss_ray.method.teacher_view import average_views
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
    """Yield the sources of regions by name."""
    many = {"points_per_side": 32}
    yield "none", lambda scene: np.zeros_like(scene.instances)
    yield "Felzenszwalb, default settings", _by_config({"regions": "felzenszwalb"})
    yield "Felzenszwalb 100/250", _felzenszwalb(100, 250)
    yield "Felzenszwalb 50/60", _felzenszwalb(50, 60)
    yield "small SAM, default settings", _by_config({})
    yield "small SAM, 32x32 points", _by_config(many)
    yield "small SAM, 32x32 points, loosest cuts", _by_config(many | LOOSEST)
    yield "small SAM, one layer of crops, looser cuts", _by_config({"crop_n_layers": 1} | LOOSER)
    yield "true objects", lambda scene: scene.instances
    yield "true parts", lambda scene: scene.parts


def _felzenszwalb(scale: float, min_size: int) -> Segmenter:
    """Return Felzenszwalb's segmenter. `min_size` refers to images of 480x360, as in the config."""
    knobs = {"felzenszwalb_scale": scale, "felzenszwalb_min_size": min_size}
    return _by_config({"regions": "felzenszwalb"} | knobs)


def _by_config(knobs: dict[str, Any]) -> Segmenter:
    """Return the regions of the embedded default with these knobs of `masks`."""
    config = override(embedded_config(), {f"masks.{name}": value for name, value in knobs.items()})
    recipe, checkpoint = make_recipe(config.masks, None)
    find_regions = build_region_source(recipe, checkpoint, config.masks.points_per_batch, "cpu")

    def segment(scene: Scene) -> np.ndarray:
        height, width = scene.image.shape[:2]
        records = [{**r, "height": height, "width": width} for r in find_regions(scene.image)]
        order = paint_order([record["area"] for record in records], "fine")
        return paint_id_map(records, order, image_size=(height, width))

    return segment


@torch.no_grad()
def teacher_probabilities(network: Any, images: Tensor, config: Config) -> Tensor:
    """Return probabilities (N, C, H, W) averaged over the views of the config."""
    teacher, parts = ContrastNet(network, config.train).eval(), []
    for batch in images.split(BATCH):
        plain = network.upsample(teacher(batch)[0], batch.shape[-2:]).softmax(1)
        parts.append(average_views(teacher, batch, plain, config.train.loss))
    return torch.cat(parts)


def fit_of_regions(ids: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Return regions per image, the covered share of pixels, and the purity of the regions."""
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
    """Return the row of one source of regions."""
    ids = np.stack([segment(scene) for scene in scenes]).astype(np.int64)
    labels = np.stack([scene.labels for scene in scenes])
    prior = ClassPrior(probabilities.shape[1])
    prior.update(probabilities.sum((0, 2, 3)))
    row: dict[str, Any] = fit_of_regions(ids, labels)
    for weight, power in VOTES:
        vote = {"mask_vote": "pooled", "vote_weight": weight, "prior_power": power}
        config = override(Config(), {f"train.loss.{name}": v for name, v in vote.items()})
        evidence = Evidence.gather(probabilities, torch.from_numpy(ids), prior.share(), power)
        labels_voted, _ = relabel(evidence, config.train.loss)
        matrix = ConfusionMatrix(probabilities.shape[1])
        matrix.add(labels, labels_voted.numpy())
        row[f"w {weight}, p {power}"] = matrix.miou()
    return row


def table(rows: dict[str, dict[str, Any]], scenes: int) -> str:
    """Return the table as Markdown."""
    names = list(next(iter(rows.values())))
    lines = [
        f"`python experiments/studies/region_worth.py --scenes {scenes}`: mIoU in percent of"
        f" pseudo-labels on {scenes} drawn camera scenes, by weight of the vote (w)"
        " and power of the prior (p).",
        "",
        "| regions | per image | " + " | ".join(names[1:]) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for name, row in rows.items():
        purity = f"{row['purity']:.3f}" if row["regions"] else ""
        shape = f"{row['regions']:.0f} | {row['covered']:.2f} | {purity}"
        scores = " | ".join(f"{row[each]:.1f}" for each in names[3:])
        lines.append(f"| {name} | {shape} | {scores} |")
    return "\n".join(lines) + "\n"


def run(arguments: argparse.Namespace) -> None:
    """Measure every source of regions, and write the table after each."""
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
        write_record(
            arguments.results / "region_worth.json",
            f"python experiments/studies/region_worth.py --scenes {len(scenes)}",
            "cpu",
            [{"regions_source": source} | values for source, values in rows.items()],
        )
        (arguments.results / "region_worth.md").write_text(table(rows, len(scenes)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", dest="images", type=int, default=40)
    parser.add_argument("--work", type=Path, default=Path("runs/region_worth"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.set_defaults(pair="streets")
    arguments = parser.parse_args()
    sys.exit(run_guarded(lambda: run(arguments)))
