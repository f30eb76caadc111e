"""Scoring a finished model on labelled images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sfss_ray import cluster
from sfss_ray.config import Config
from sfss_ray.models.card import CardLike
from sfss_ray.models.source import SourceLike, open_source
from sfss_ray.train.launch import labelled_images


@dataclass(frozen=True)
class EvaluationResult:
    """mIoU of a model over a named class set, from one confusion matrix."""

    class_set: str
    classes: tuple[str, ...]
    miou: float
    """Percent, mean over the classes that the labels show."""
    pixel_accuracy: float
    """Percent."""
    per_class: dict[str, float]
    """IoU in percent by class; NaN where no label shows the class."""
    images: int


def evaluate_model(
    model: SourceLike,
    images: Path | str,
    labels: Path | str,
    *,
    card: CardLike | None = None,
    config: Config | None = None,
) -> EvaluationResult:
    """Score a model file on labelled images: single scale, no flip, labels at their own size.

    Args:
        model: A model file (student.pt, source.pt) or a checkpoint of any known family; in Python also
            a model in memory.
        images: Folder of images.
        labels: Folder of their label maps of train ids, 255 ignored.
        card: Entries that replace what the checkpoint's family says of its images: JSON file, mapping
            or Card.
        config: `evaluation` and `compute.device` are used.

    Raises:
        CheckpointError: no model file. DataError: images and labels do not pair up, or labels hold
        ids that the model's classes have not.
    """
    config = config or Config()
    source = open_source(model, card)
    classes = source.classes
    pairs = labelled_images(images, labels, classes)

    from sfss_ray.evaluation.evaluate import Examination

    network = source.load(cluster.resolve_device(config.compute)).network
    score = Examination(classes, pairs, config=config.evaluation).score(network)
    return EvaluationResult(
        classes.name,
        classes.classes,
        score.miou,
        score.pixel_accuracy,
        dict(zip(classes.classes, score.per_class, strict=True)),
        len(pairs),
    )
