"""Scoring a network on folders of images: mIoU where there are labels, label-free scores else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sfss_ray.config import EvaluationConfig
from sfss_ray.data.class_sets import ClassSet
from sfss_ray.data.folders import ImageFile, LabelledImage
from sfss_ray.errors import DataError
from sfss_ray.evaluation.confusion_matrix import ConfusionMatrix
from sfss_ray.evaluation.inference import predict_probabilities
from sfss_ray.evaluation.label_free import LabelFreeScores, Variety
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.runtime.progress import Progress, ProgressSink

IdMap = Callable[[str], np.ndarray]
"""image_id -> (H, W) mask ids."""


@dataclass(frozen=True)
class Score:
    """What a network is worth. mIoU and accuracy in percent, NaN without labels."""

    miou: float = float("nan")
    pixel_accuracy: float = float("nan")
    per_class: tuple[float, ...] = ()
    """IoU of each class in percent; NaN for classes that no label shows."""
    mask_information: float = float("nan")
    """Label-free, in nats; see `MaskInformation`."""
    balanced_mask_information: float = float("nan")
    """The same with rare classes counting more, where the source model's shares are known."""
    entropy: float = float("nan")
    """Mean entropy of the predicted probabilities on held-out images, in nats."""
    agreement: float = float("nan")
    """With the teacher, where one is at hand: mean IoU of the two predictions, 0 to 1."""
    neighbourhood_density: float = float("nan")
    """Label-free, in nats; see `NeighbourhoodDensity`."""
    predicted_classes: int = 0
    """Classes with at least a thousandth of the predicted pixels: a collapse shows here."""
    class_entropy: float = float("nan")
    """Entropy of the histogram of predicted classes, in nats: a collapse shows here too."""
    class_share: tuple[float, ...] = ()
    """Share of the held-out pixels that is predicted of each class."""
    labelled_images: int = 0
    held_out_images: int = 0

    @property
    def variety(self) -> Variety:
        """What is compared with the source model's to tell a collapse."""
        return Variety(self.predicted_classes, self.class_entropy)

    def as_dict(self) -> dict[str, Any]:
        """Plain values; NaN becomes None, as JSON has no NaN."""
        plain = {name: _plain(value) for name, value in vars(self).items()}
        return plain | {"per_class": [_plain(v) for v in self.per_class] or None}


_FOLLOWED = (
    "mask_information",
    "balanced_mask_information",
    "entropy",
    "agreement",
    "neighbourhood_density",
    "predicted_classes",
    "class_entropy",
)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value


@dataclass(frozen=True)
class Examination:
    """What a network is scored on: labelled images, and held-out target images with masks.

    Calling it with a network returns the numbers worth following through training.
    """

    classes: ClassSet
    labelled: tuple[LabelledImage, ...] = ()
    held_out: tuple[ImageFile, ...] = ()
    id_map: IdMap | None = None
    config: EvaluationConfig = field(default_factory=EvaluationConfig)
    source_share: tuple[float, ...] = ()
    """`Score.class_share` of the source model, for `balanced_mask_information`."""

    def __call__(self, network: Segmenter, teacher: Segmenter | None = None) -> dict[str, float]:
        score = self.score(network, teacher)
        seen = {"val_miou": score.miou} | {name: getattr(score, name) for name in _FOLLOWED}
        if not self.held_out:
            del seen["predicted_classes"]
        return {name: float(value) for name, value in seen.items() if not np.isnan(value)}

    def score(self, network: Segmenter, teacher: Segmenter | None = None) -> Score:
        """Score a network in eval mode; its teacher is what it is compared with."""
        miou, accuracy, per_class = self._with_labels(network)
        unlabelled = self._without_labels(network, teacher)
        values: dict[str, Any] = unlabelled.values()
        values["predicted_classes"] = int(values.get("predicted_classes", 0))
        pixels = unlabelled.histogram.sum()
        share = tuple(map(float, unlabelled.histogram / pixels)) if pixels else ()
        return Score(
            miou=miou,
            pixel_accuracy=accuracy,
            per_class=per_class,
            labelled_images=len(self.labelled),
            held_out_images=len(self.held_out),
            class_share=share,
            **values,
        )

    def beside(self, source: Score) -> Examination:
        """The same examination for students of a scored source model."""
        return replace(self, source_share=source.class_share)

    def completed(self, score: Score, network: Segmenter) -> Score:
        """A score that was made before `source_share` was known, with what needs it."""
        again = replace(self, labelled=()).score(network)
        return replace(score, balanced_mask_information=again.balanced_mask_information)

    def matrix(self, network: Segmenter, progress: ProgressSink | None = None) -> ConfusionMatrix:
        """One confusion matrix over all labelled images, at the labels' own size."""
        matrix = ConfusionMatrix(len(self.classes))
        bar = Progress("evaluated", len(self.labelled), progress) if progress else None
        for item in self.labelled:
            labels = item.labels()
            probabilities = predict_probabilities(network, item.read(), self.config)
            predictions = probabilities.argmax(0)
            if predictions.shape != labels.shape:
                raise DataError(
                    f"labels {str(item.label_path)!r} are {labels.shape[1]}x{labels.shape[0]}, their"
                    f" image {predictions.shape[1]}x{predictions.shape[0]}: give pairs of one size"
                )
            matrix.add(labels, predictions)
            if bar:
                bar.advance(1)
        return matrix

    def _with_labels(self, network: Segmenter) -> tuple[float, float, tuple[float, ...]]:
        if not self.labelled:
            return float("nan"), float("nan"), ()
        matrix = self.matrix(network)
        return matrix.miou(), matrix.pixel_accuracy(), tuple(map(float, matrix.iou()))

    def _without_labels(self, network: Segmenter, teacher: Segmenter | None) -> LabelFreeScores:
        share = np.array(self.source_share) if self.source_share else None
        scores = LabelFreeScores(len(self.classes), share)
        for file in self.held_out:
            image = file.read(max_pixels=None)  # the masks have seen it
            others = teacher and predict_probabilities(teacher, image, self.config).argmax(0)
            ids = self.id_map(file.image_id) if self.id_map else None
            scores.add(predict_probabilities(network, image, self.config), ids, others)
        return scores


def predict_images(
    network: Segmenter, images: Iterable[ImageFile], config: EvaluationConfig
) -> Iterator[tuple[ImageFile, np.ndarray, np.ndarray]]:
    """(file, RGB image, uint8 (H, W) train ids) one after the other."""
    for file in images:
        image = file.read()
        yield file, image, predict_probabilities(network, image, config).argmax(0).astype(np.uint8)


def readable(images: Sequence[ImageFile], errors: Sequence[str] | dict[str, str]):
    """Images that are not among the ids in `errors`, as a tuple."""
    return tuple(image for image in images if image.image_id not in errors)
