"""The inputs of a pretraining, checked before a cluster starts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from sfss_ray.config import Config, flatten
from sfss_ray.config.consistency import check_stage
from sfss_ray.data.class_sets import ClassSet
from sfss_ray.data.folders import LabelledImage
from sfss_ray.data.labelled import PairOptions, load_labelled
from sfss_ray.evaluation.examination import Examination
from sfss_ray.inputs.crop_size import with_crop_size
from sfss_ray.inputs.labels import labelled_images
from sfss_ray.inputs.record import hash_of_ids, labelled_files
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.runtime.progress import ProgressSink
from sfss_ray.storage.places import Place


@dataclass(frozen=True)
class LabelledFolders:
    """The folders that a user gives to a pretraining."""

    images: Place | str
    labels: Place | str
    val_images: Place | str | None = None
    val_labels: Place | str | None = None


@dataclass(frozen=True)
class PretrainingInputs:
    """The checked inputs of a pretraining."""

    classes: ClassSet
    training: tuple[LabelledImage, ...]
    labelled: tuple[LabelledImage, ...]
    """Images that mIoU is reported on, empty without validation labels."""
    labels_format: str
    """Encoding of the training labels, as recognised or named."""
    label_classes: ClassSet
    """Classes that the training labels hold."""
    white_level: float | None
    """White in training images of more than 8 bits, None for images of 8 bits."""
    network: Segmenter
    """With random weights."""
    config: Config
    """The config that was given, with the crop size settled."""

    def record(self, config: Config) -> dict[str, Any]:
        """Return what decides the result of the run. A resumed run must have the same record."""
        return flatten(config.pretrain, "pretrain.") | {
            "seed": config.seed,
            "inputs.classes": list(self.classes.classes),
            "inputs.labels_format": self.labels_format,
            "inputs.label_classes": list(self.label_classes.classes),
            "inputs.white_level": self.white_level,
            "inputs.images": len(self.training),
            "inputs.image_ids_sha256": hash_of_ids(self.training),
        }

    def files(self) -> dict[str, Place]:
        """Return all input files by name."""
        return labelled_files("training", self.training) | labelled_files("val", self.labelled)

    def examination(self, config: Config) -> Examination | None:
        """Return the examination that reports mIoU, None without validation labels."""
        if not self.labelled:
            return None
        return Examination(self.classes, self.labelled, config=config.evaluation)


def check_pretraining(
    folders: LabelledFolders, classes: ClassSet, config: Config, progress: ProgressSink
) -> PretrainingInputs:
    """Pair and decode the labelled images, and check them against the config.

    Raises:
        DataError: labels that do not fit the images or the class set.
        ConfigError: an unknown network, or a batch size that the workers cannot share.
    """
    options = PairOptions(role="training", skip_unequal=True)
    folder = load_labelled(folders.images, folders.labels, classes, config, options, progress)
    for line in folder.describe(classes):
        progress(line)
    white_level = next((pair.white.value for pair in folder.pairs if pair.white), None)
    # An encoding named in the config is that of the training labels. Validation labels are recognised.
    auto = dataclasses.replace(config, labels_format="auto", labels_classes="")
    labelled = labelled_images(
        folders.val_images, folders.val_labels, classes, auto, progress, white_level
    )
    check_stage(config.pretrain, config.compute)
    network = build_network(config.pretrain.network, len(classes))
    config, line = with_crop_size(config, "pretrain", folder.pairs, network.size_multiple)
    progress(f"crops: {line}")
    return PretrainingInputs(
        classes,
        folder.pairs,
        labelled,
        folder.format,
        folder.label_classes,
        white_level,
        network,
        config,
    )
