"""The row of the ablation in which SAM 3, prompted with class names, votes: external knowledge."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablation_rows import USER_REGIONS, VOTE, Row
from domain_pairs import DomainPair
from study_regions import row_of

from sfss_ray.config import override
from sfss_ray.masks.bank.schema import read_recipe, write_shard
from sfss_ray.masks.concept_stage import check_concepts
from sfss_ray.masks.regions import build_region_source

WEIGHT = "train.loss.concept_weight"
CONCEPT_ROWS = tuple(
    Row(
        f"concepts_{regions}",
        "A1 + pooled vote + SAM 3 prompted with class names (external knowledge)",
        regions,
        VOTE | {WEIGHT: 0.5},
        external=True,
    )
    for regions in (USER_REGIONS, "small_sam")
)


def add_concept_options(parser: argparse.ArgumentParser) -> list[str]:
    """Add the options of external knowledge; return the keys of its rows."""
    parser.add_argument("--concepts", help="SAM 3 that is prompted with class names: adds its rows")
    parser.add_argument("--concept-prompts", default="", help="as masks.concept_prompts")
    return [row.key for row in CONCEPT_ROWS]


def with_concepts(pair: DomainPair, checkpoint: str, prompts: str) -> DomainPair:
    """Return a pair with masks of classes, which are made if they are missing."""
    knobs = {"masks.concepts": checkpoint, "masks.concept_prompts": prompts}
    options = f"{pair.options} --concepts FOLDER"
    options += f" --concept-prompts '{prompts}'" if prompts else ""
    pair = replace(pair, options=options, config=override(pair.config, knobs))
    _make_masks(pair)
    return pair


def concept_folder(pair: DomainPair) -> Path:
    """Return the folder of the masks with classes of a pair."""
    return pair.folder / "masks" / f"concepts-{len(pair.images)}"


def stored_recipe(pair: DomainPair) -> dict[str, Any]:
    """Return the recipe of the masks with classes of a pair, empty without any."""
    return read_recipe(concept_folder(pair) / "masks-0.parquet") or {}


def _make_masks(pair: DomainPair) -> None:
    """Make the masks with classes of all target images, unless the same recipe made them before."""
    stage = check_concepts(pair.config, pair.classes.classes)
    recipe = stage.recipe.as_dict()
    stored = stored_recipe(pair)
    if all(stored.get(name) == value for name, value in recipe.items()):
        return
    points_per_batch = pair.config.masks.points_per_batch
    find_masks = build_region_source(stage.recipe, stage.checkpoint, points_per_batch, "cpu")
    folder = concept_folder(pair)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row_of(file, lambda _, image: find_masks(image)) for file in pair.images]
    write_shard(folder / "masks-0.parquet", rows, recipe)
