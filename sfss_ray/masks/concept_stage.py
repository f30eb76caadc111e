"""Masks with classes of the target images, made beside the class-agnostic ones of a run.

They are external knowledge: a network that learned the class names elsewhere votes on the pseudo-labels.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfss_ray.config import Config
from sfss_ray.data.folders import ImageFile
from sfss_ray.errors import DataError
from sfss_ray.masks.bank.schema import CONCEPTS
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.concepts.prompts import class_prompts
from sfss_ray.masks.generate import mask_images
from sfss_ray.masks.regions import RegionRecipe
from sfss_ray.runtime.progress import ProgressSink
from sfss_ray.storage.places import Place

CONCEPT_FOLDER = "concepts"
"""Folder of these masks in a run's folder."""


@dataclass(frozen=True)
class ConceptStage:
    """How masks with classes are made."""

    recipe: RegionRecipe
    checkpoint: Path
    """Folder of the network."""

    @property
    def prompts(self) -> Mapping[str, Sequence[str]]:
        """Class -> its prompts; none for a class that is not searched for."""
        return self.recipe.knobs["prompts"]

    def describe(self) -> str:
        """Return a line for people that names the external knowledge."""
        searched = [texts for texts in self.prompts.values() if texts]
        return (
            f"external knowledge: {self.checkpoint} (SAM 3), {sum(map(len, searched))} prompts for"
            f" {len(searched)} of {len(self.prompts)} classes"
        )


@dataclass(frozen=True)
class ConceptSummary:
    """Masks with classes after a run made them."""

    stage: ConceptStage
    folder: Place
    images: int
    masks: int
    seconds: float
    failed: int
    """Images without such masks because of an error."""


def check_concepts(config: Config, classes: Sequence[str]) -> ConceptStage:
    """Return how masks with classes are made, after a look at prompts and network.

    Args:
        config: `masks.concepts` names the network.
        classes: Names of the target's classes.

    Raises:
        CheckpointError: the network is missing or incomplete, takes no text, or lacks its tokenizer.
        ConfigError: the prompts cannot be read, one is too long, or a class has none.
    """
    from sfss_ray.masks.concepts.concept_checkpoint import (
        concept_sha256,
        load_concepts,
        resolve_concept_checkpoint,
    )

    prompts = class_prompts(config.masks.concept_prompts, classes)
    checkpoint = resolve_concept_checkpoint(config.masks.concepts)
    knobs: dict[str, Any] = {
        "classes": list(classes),
        "prompts": {name: list(texts) for name, texts in prompts.items()},
        "score_thresh": config.masks.concept_score_thresh,
    }
    sha256 = concept_sha256(checkpoint)
    load_concepts(checkpoint).encode_prompts([text for texts in prompts.values() for text in texts])
    recipe = RegionRecipe(CONCEPTS, "sam3_concepts", sha256, knobs, config.masks.precision)
    return ConceptStage(recipe, checkpoint)


def make_concept_masks(
    stage: ConceptStage,
    images: Sequence[ImageFile],
    folder: Place,
    config: Config,
    progress: ProgressSink,
) -> ConceptSummary:
    """Make the masks with classes that `folder` lacks; see `mask_images`.

    Raises:
        DataError: every image has an error.
    """
    started = time.monotonic()
    progress(stage.describe())
    mask_images(images, folder, stage.recipe, stage.checkpoint, config, progress)
    store = MaskStore(folder)
    image_ids = {image.image_id for image in images}
    failed = sorted(image_ids & store.errors.keys())
    if len(failed) == len(image_ids):
        raise DataError(
            f"none of the {len(image_ids)} images has masks with classes; {failed[0]!r}:"
            f" {store.errors[failed[0]]}"
        )
    if failed:
        progress(
            f"concepts: {len(failed)} images have no masks with classes (first: {failed[0]!r}:"
            f" {store.errors[failed[0]]})"
        )
    seconds = time.monotonic() - started
    num_masks = store.count(image_ids)
    return ConceptSummary(stage, folder, len(image_ids), num_masks, seconds, len(failed))
