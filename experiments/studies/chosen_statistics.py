"""The choice of `train.batch_norm auto`, made once for all trainings of a pair."""

from __future__ import annotations

import json
from typing import Any

from domain_pairs import DomainPair

from sfss_ray.config import Config, flatten
from sfss_ray.runtime.run_folder import write_json


def statistics_knobs(pair: DomainPair, config: Config) -> dict[str, Any]:
    """Return settings that give the statistics which `batch_norm auto` chooses; none in other modes.

    The choice depends on source model and images alone. It takes as long as 30 steps, and an ablation
    would make it for each row and seed. A training goes on in the same way in both modes.
    """
    if config.train.batch_norm != "auto":
        return {}
    path, identity = pair.folder / "statistics_share.json", _identity(pair, config)
    stored = json.loads(path.read_text()) if path.exists() else {}
    if stored.get("identity") != identity:
        stored = {"identity": identity, "share": choose_share(pair, config)}
        write_json(path, stored)
    return {"train.batch_norm": "target", "train.statistics_share": stored["share"]}


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
