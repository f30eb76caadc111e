"""The inputs of an adaptation, checked and split into training and held-out images."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sfss_ray.config import Config
from sfss_ray.data.class_sets import ClassSet
from sfss_ray.data.folders import ImageFile, LabelledImage
from sfss_ray.errors import DataError
from sfss_ray.inputs.request import Inputs, split_target_images
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.concept_stage import CONCEPT_FOLDER, ConceptSummary, make_concept_masks
from sfss_ray.models.source import Source
from sfss_ray.runtime.progress import ProgressSink
from sfss_ray.storage.places import Place

if TYPE_CHECKING:
    from sfss_ray.evaluation.examination import Examination
    from sfss_ray.train.adaptation import AdaptationTask


@dataclass(frozen=True)
class Prepared:
    """The checked inputs of an adaptation."""

    source: Source
    training: tuple[ImageFile, ...]
    """Target images to learn from."""
    held_out: tuple[ImageFile, ...]
    """Target images that label-free scores are computed on."""
    labelled: tuple[LabelledImage, ...]
    """Images that mIoU is reported on."""
    masks: str
    """Address of the mask folder."""
    concepts: str = ""
    """Folder of masks with classes; empty without them."""

    @property
    def classes(self) -> ClassSet:
        """The source model's class set."""
        return self.source.classes

    def placed(self, folder: Place) -> Prepared:
        """Return a copy whose source model workers can read. It is written to `folder` if needed."""
        return dataclasses.replace(self, source=self.source.placed(folder))

    def with_concepts(self, concepts: ConceptSummary | None) -> Prepared:
        """Return a copy with masks that have classes; without any, this object."""
        if concepts is None:
            return self
        return dataclasses.replace(self, concepts=str(concepts.folder))

    def task(self, config: Config) -> AdaptationTask:
        """Return the task of a training with this config."""
        from sfss_ray.train.adaptation import AdaptationTask

        source = self.source
        return AdaptationTask(
            source.path,
            self.training,
            self.masks,
            config,
            source.carried,
            self.held_out,
            self.concepts,
        )

    @functools.cached_property
    def store(self) -> MaskStore:
        """The masks, opened once in each process."""
        return MaskStore(self.masks)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open masks out of a pickle, because the index of a large folder is megabytes."""
        return {name: value for name, value in self.__dict__.items() if name != "store"}

    def examination(self, config: Config) -> Examination:
        """Return the examination that scores students of this adaptation."""
        from sfss_ray.evaluation.examination import Examination

        return Examination(
            self.classes, self.labelled, self.held_out, self.store.id_map, config.evaluation
        )


def provide_concepts(
    inputs: Inputs, folder: Place, progress: ProgressSink
) -> ConceptSummary | None:
    """Make masks with classes below a run's folder, where the config names a network for them."""
    if inputs.concepts is None:
        return None
    folder = folder / CONCEPT_FOLDER
    return make_concept_masks(inputs.concepts, inputs.images, folder, inputs.config, progress)


def prepare_training(inputs: Inputs, store: MaskStore, config: Config) -> Prepared:
    """Split the checked inputs into training and held-out images.

    Images whose masks are missing because of an error are left out.

    Raises:
        DataError: no image is left for training.
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
    prepared.__dict__["store"] = store  # fills the cached property, so it is not opened again
    return prepared
