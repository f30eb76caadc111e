"""The choice of `train.batch_norm auto`, made once for all trainings of a pair."""

from __future__ import annotations

import json
from typing import Any

from domain_pairs import DomainPair

from sfss_ray.config import Config, flatten
from sfss_ray.runtime.run_folder import write_json

FILE = "statistics_share.json"
"""In the folder of the pair."""


def statistics_knobs(pair: DomainPair, config: Config) -> dict[str, Any]:
    """Return settings that give the statistics which `batch_norm auto` chooses; none in other modes.

    The choice depends on source model and images alone. It takes as long as 30 steps, and an ablation
    would make it for each row and seed. A training goes on in the same way in both modes.
    """
    if config.train.batch_norm != "auto":
        return {}
    share = stored_share(pair, config)
    if share is None:
        share = choose_share(pair, config)
        write_json(pair.folder / FILE, {"identity": _identity(pair, config), "share": share})
    return {"train.batch_norm": "target", "train.statistics_share": share}


def stored_share(pair: DomainPair, config: Config) -> float | None:
    """Return the share that `statistics_knobs` stored for a pair, None where it stores none."""
    if config.train.batch_norm != "auto":
        return None
    path = pair.folder / FILE
    stored = json.loads(path.read_text()) if path.exists() else {}
    return stored["share"] if stored.get("identity") == _identity(pair, config) else None


def choose_share(pair: DomainPair, config: Config) -> float:
    """Return the share of the target's statistics that `batch_norm auto` chooses."""
    from sfss_ray.models.model_file import load_model
    from sfss_ray.train.norm_choice import StatisticsImages, set_initial_statistics

    network = load_model(pair.source_model).network
    choice = set_initial_statistics(network, StatisticsImages(pair.images), config)
    return choice.share if choice else 0.0


def _identity(pair: DomainPair, config: Config) -> dict[str, Any]:
    from sfss_ray.models.reading import file_sha256

    settings = flatten(config.evaluation, "evaluation.")
    settings["train.statistics_images"] = config.train.statistics_images
    facts = {"source": file_sha256(pair.source_model), "images": len(pair.images)}
    return json.loads(json.dumps(facts | settings))
