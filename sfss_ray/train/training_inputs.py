"""What a training starts from: checked inputs, with their masks."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfss_ray.config import Config
from sfss_ray.data.class_sets import ClassSet
from sfss_ray.data.folders import ImageFile, LabelledImage
from sfss_ray.errors import DataError
from sfss_ray.inputs.request import Inputs, split_target_images
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.models.source import Source

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

    @functools.cached_property
    def store(self) -> MaskStore:
        """The masks, opened once in each process."""
        return MaskStore(self.masks)

    def __getstate__(self) -> dict[str, Any]:
        """Other processes open the masks themselves: the index of a large folder is megabytes."""
        return {name: value for name, value in self.__dict__.items() if name != "store"}

    def examination(self, config: Config):
        """What students of this adaptation are scored on."""
        from sfss_ray.evaluation.examination import Examination

        return Examination(
            self.classes, self.labelled, self.held_out, self.store.id_map, config.evaluation
        )


def prepare_training(inputs: Inputs, store: MaskStore, config: Config) -> Prepared:
    """Checked inputs with their masks; images that have none because of an error are left out.

    Raises:
        DataError: no image is left to learn from.
    """
    training, held_out = split_target_images(inputs.images, store, config)
    if not training:
        raise DataError(
            f"none of the {len(inputs.images)} target images is left for training: give more images,"
            " or lower evaluation.held_out_share"
        )
    prepared = Prepared(
        inputs.source, tuple(training), tuple(held_out), inputs.labelled, store.folder
    )
    prepared.__dict__["store"] = store
    return prepared
