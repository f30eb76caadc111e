"""Labelled images that a run is scored on, paired and checked."""

from __future__ import annotations

from sfss_ray.config import Config
from sfss_ray.data.class_sets import ClassSet
from sfss_ray.data.folders import LabelledImage
from sfss_ray.data.labelled import PairOptions, load_labelled
from sfss_ray.errors import DataError
from sfss_ray.runtime.progress import ProgressSink, silent
from sfss_ray.storage.places import Place


def labelled_images(
    images: Place | str | None,
    labels: Place | str | None,
    classes: ClassSet,
    config: Config | None = None,
    progress: ProgressSink | None = None,
    white: float | None = None,
) -> tuple[LabelledImage, ...]:
    """Pair the images and labels to score on; empty without labels.

    Args:
        images: Folder of images; None without labels.
        labels: Folder of their label maps; None without labels.
        classes: Class set that the labels are mapped to.
        config: `labels_format`, `labels_classes` and `white_level` are used.
        progress: Called with lines that describe the pairs.
        white: White level of the images of more than 8 bits that the model is used for.

    Raises:
        DataError: only one of the folders is given, or `load_labelled` refuses the labels.
    """
    if images is None and labels is None:
        return ()
    folders = require_both(images, labels)
    options = PairOptions(model_white=white)
    dataset = load_labelled(*folders, classes, config, options, progress)
    for line in dataset.describe(classes):
        (progress or silent)(line)
    return dataset.pairs


def require_both(
    images: Place | str | None, labels: Place | str | None
) -> tuple[Place | str, Place | str]:
    """Return both folders.

    Raises:
        DataError: one of them is None.
    """
    if images is None or labels is None:
        present, absent = ("labels", "images") if images is None else ("images", "labels")
        raise DataError(f"val_{present} were given without val_{absent}: give both, or neither")
    return images, labels
