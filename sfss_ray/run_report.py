"""The evidence of a run: what report.json says of it, and pictures of both networks."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfss_ray.config import Config, flatten
from sfss_ray.data.folders import ImageFile, evenly_spread
from sfss_ray.evaluation.label_free import lost_variety
from sfss_ray.masks.summary import MaskSummary
from sfss_ray.train.launch import TrainResult
from sfss_ray.train.training_inputs import Prepared
from sfss_ray.tune.search import SearchResult
from sfss_ray.tune.search_record import describe_search
from sfss_ray.version import __version__

if TYPE_CHECKING:
    import numpy as np

    from sfss_ray.evaluation.examination import Score
    from sfss_ray.models.segmenter import Segmenter
    from sfss_ray.report.pictures import Strip

SOURCE_ONLY, ADAPTED = "source-only", "adapted"


def describe_run(
    kind: str,
    prepared: Prepared,
    masks: MaskSummary,
    trained: TrainResult,
    search: SearchResult | None,
    config: Config,
    scores: dict[str, Score],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """The content of report.json, both networks scored."""
    oracle = bool(search and search.oracle)
    report: dict[str, Any] = {
        "title": f"{Path(prepared.source.origin).stem} adapted to {masks.images} images",
        "kind": kind,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "class_set": {"name": prepared.classes.name, "classes": list(prepared.classes.classes)},
        "network_scored": "student",
        "step_scored": f"last ({config.train.num_steps} of {config.train.num_steps})",
        "seed": config.seed,
        "source_model": {
            "path": prepared.source.origin,
            "sha256": prepared.source.sha256,
            "network": prepared.source.network,
            "card": prepared.source.card.to_dict(),
        },
        "regions": {
            "source": masks.source,
            "note": masks.note,
            "images": masks.images,
            "masks": masks.masks,
            "masks_per_image": round(masks.masks / max(masks.images, 1), 1),
        },
        "target": {"images": masks.images, "held_out": len(prepared.held_out)},
        "errors": [{"image": i, "reason": r} for i, r in sorted(masks.errors.items())],
        "labels": {
            "given": bool(prepared.labelled),
            "images": len(prepared.labelled),
            "used_for": "choosing (oracle)" if oracle else "reporting only",
        },
        "rows": _rows(scores, trained),
        "curves": [{"name": ADAPTED, "points": trained.curve}],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "config": flatten(config),
    }
    return report | (describe_search(search) if search else {})


def _rows(scores: dict[str, Score], trained: TrainResult) -> list[dict[str, Any]]:
    """Scores side by side; agreement is the last look's, as a student's file has no teacher in it."""
    rows = {name: {"name": name} | score.as_dict() for name, score in scores.items()}
    rows[ADAPTED]["agreement"] = trained.curve[-1].get("agreement") if trained.curve else None
    if scores[ADAPTED].held_out_images:
        lost = lost_variety(scores[ADAPTED].variety, scores[SOURCE_ONLY].variety)
        rows[ADAPTED]["collapsed"] = lost
    return list(rows.values())


def shown_images(prepared: Prepared, config: Config) -> list[ImageFile]:
    """Labelled images where there are any, else held-out target images, evenly spread."""
    labelled = [ImageFile(item.image_id, item.path, item.white) for item in prepared.labelled]
    return evenly_spread(labelled or list(prepared.held_out), config.evaluation.pictures)


def draw_strips(
    prepared: Prepared,
    shown: list[ImageFile],
    networks: dict[str, Segmenter],
    mask_ids: Callable[[str], np.ndarray | None],
    config: Config,
) -> list[Strip]:
    """What both networks make of some images; mask_ids: image_id -> (H, W) ids, None if unknown."""
    from sfss_ray.evaluation.examination import predict_probabilities
    from sfss_ray.report.pictures import Strip

    labels = {item.image_id: item for item in prepared.labelled}
    strips = []
    for file in shown:
        image = file.read()
        predictions = {
            name: predict_probabilities(network, image, config.evaluation).argmax(0).astype("uint8")
            for name, network in networks.items()
        }
        truth = labels[file.image_id].labels() if file.image_id in labels else None
        strips.append(Strip(file.image_id, image, mask_ids(file.image_id), predictions, truth))
    return strips
