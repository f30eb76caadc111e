"""The checked inputs of a training, before a cluster starts."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfss_ray.config import ComputeConfig, Config, PretrainConfig, TrainConfig, flatten
from sfss_ray.data.class_sets import ClassSet
from sfss_ray.data.folders import ImageFile, LabelledImage, list_images, split_held_out
from sfss_ray.data.labelled import load_labelled
from sfss_ray.errors import ConfigError, DataError
from sfss_ray.masks.given import open_masks
from sfss_ray.masks.places import folder_address
from sfss_ray.masks.store import MaskStore
from sfss_ray.models.source import Source
from sfss_ray.progress import ProgressSink, silent

if TYPE_CHECKING:
    from sfss_ray.train.adaptation import AdaptationTask


@dataclass(frozen=True)
class Prepared:
    """Checked inputs of an adaptation."""

    source: Source
    training: tuple[ImageFile, ...]
    held_out: tuple[ImageFile, ...]
    labelled: tuple[LabelledImage, ...]
    masks: str
    """Address of the folder of masks."""

    @property
    def classes(self) -> ClassSet:
        """The source model's."""
        return self.source.classes

    def placed(self, folder: Path) -> Prepared:
        """With a source model that workers can read, in the run's folder if need be."""
        return dataclasses.replace(self, source=self.source.placed(folder))

    def task(self, config: Config) -> AdaptationTask:
        """What a training is given."""
        from sfss_ray.train.adaptation import AdaptationTask

        source = self.source
        return AdaptationTask(source.path, self.training, self.masks, config, source.carried)

    def examination(self, config: Config):
        """What students of this adaptation are scored on."""
        from sfss_ray.evaluation.evaluate import Examination

        store = MaskStore(self.masks)
        return Examination(
            self.classes, self.labelled, self.held_out, store.id_map, config.evaluation
        )


def prepare_training(
    source: Source,
    target_images: Path | str,
    masks: Path | str,
    val_images: Path | str | None,
    val_labels: Path | str | None,
    config: Config,
) -> Prepared:
    """Check everything that can be checked before a cluster starts."""
    labelled = labelled_images(val_images, val_labels, source.classes, config)
    check_stage(config.train, config.compute)
    images = list_images(target_images)
    store = open_masks(masks, images)
    usable = [image for image in images if image.image_id not in store.errors]
    training, held_out = split_held_out(
        usable, config.evaluation.held_out_share, config.evaluation.held_out_max
    )
    if not training:
        raise DataError(f"no readable image in {str(target_images)!r}: give images to adapt to")
    return Prepared(
        source,
        tuple(training),
        tuple(held_out),
        labelled,
        folder_address(masks),
    )


def labelled_images(
    images: Path | str | None,
    labels: Path | str | None,
    classes: ClassSet,
    config: Config | None = None,
    progress: ProgressSink | None = None,
) -> tuple[LabelledImage, ...]:
    """Pairs to score on; empty without labels. DataError when only one folder is given, or for
    labels that `load_labelled` refuses."""
    if images is None and labels is None:
        return ()
    if images is None or labels is None:
        given, missing = ("labels", "images") if images is None else ("images", "labels")
        raise DataError(f"val_{given} were given without val_{missing}: give both, or neither")
    folder = load_labelled(images, labels, classes, config, progress=progress)
    for line in folder.describe(classes):
        (progress or silent)(line)
    return folder.pairs


def check_stage(stage: TrainConfig | PretrainConfig, compute: ComputeConfig) -> None:
    """What several knobs say together, which only a whole config can be asked for.

    ConfigError when the batch cannot be shared out evenly, crops have no neighbour to mix, or the
    learning rate rises to the last step.
    """
    _check_warm_up(stage)
    workers, parts, class_mix = compute.num_workers, stage.accumulate, stage.augment.class_mix
    if stage.batch_size % workers:
        raise ConfigError(
            f"batch_size is {stage.batch_size} but there are {workers} workers: choose a"
            " multiple of the number of workers"
        )
    if stage.batch_size % (workers * parts):
        raise ConfigError(
            f"batch_size is {stage.batch_size} for {workers} workers and accumulate is {parts}: choose"
            f" a multiple of {workers * parts}, or fewer parts"
        )
    share = stage.batch_size // (workers * parts)
    if class_mix > 0 and share % 2:
        raise ConfigError(
            f"batch_size is {stage.batch_size}, {share} at a time on each of {workers} workers, and"
            f" augment.class_mix is {class_mix}: neighbours in the batch are mixed, so choose a multiple"
            f" of {2 * workers * parts}, or class_mix 0"
        )


def _check_warm_up(stage: TrainConfig | PretrainConfig) -> None:
    """A run that ends while its rate still rises has learnt next to nothing."""
    optim, steps = stage.optim, stage.num_steps
    if optim.warmup_steps >= steps or (not optim.warmup_steps and optim.warmup_share >= 1):
        raise ConfigError(
            f"warmup_steps is {optim.warmup_steps} and warmup_share {optim.warmup_share:g} of num_steps"
            f" {steps}: the learning rate would rise to the last step; lower warmup_steps (0:"
            " warmup_share decides), or take more steps"
        )


def run_record(
    config: Config,
    source: Source,
    images: list[ImageFile],
    labelled: tuple[LabelledImage, ...],
) -> dict[str, Any]:
    """What decides the result of a run: config without `compute`, source model, images."""
    science = {k: v for k, v in flatten(config).items() if not k.startswith("compute.")}
    return science | {
        "inputs.source_sha256": source.sha256,
        "inputs.card": source.card.to_dict(),
        "inputs.images": len(images),
        "inputs.image_ids_sha256": hash_of_ids(images),
        "inputs.labelled_images": len(labelled),
    }


def record_of_masks(recipe: dict[str, Any], masks: int) -> dict[str, Any]:
    """What decides the masks that are there: how they were made, and how many there are."""
    return {
        "inputs.sam_sha256": recipe.get("sam_sha256", ""),
        "inputs.masks_source": recipe.get("source", "unknown"),
        "inputs.masks_knobs": recipe.get("knobs", {}),
        "inputs.masks": masks,
    }


def hash_of_ids(images: Sequence[ImageFile | LabelledImage]) -> str:
    """SHA-256 of the sorted image ids."""
    return hashlib.sha256("\n".join(sorted(i.image_id for i in images)).encode()).hexdigest()
