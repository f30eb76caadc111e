"""Scores of a network on images: mIoU on labelled ones, label-free scores on held-out ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sfss_ray.config import EvaluationConfig
from sfss_ray.data.class_sets import ClassSet
from sfss_ray.data.folders import ImageFile, LabelledImage
from sfss_ray.errors import DataError
from sfss_ray.evaluation.confusion_matrix import ConfusionMatrix
from sfss_ray.evaluation.inference import predict_file_probabilities
from sfss_ray.evaluation.label_free import LabelFreeScores, Variety
from sfss_ray.evaluation.source_reference import SourceReference
from sfss_ray.evaluation.view_consistency import predict_views
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.runtime.progress import Progress, ProgressSink

IdMap = Callable[[str], np.ndarray]
"""image_id -> (H, W) mask ids, 0 = no mask."""


@dataclass(frozen=True)
class Score:
    """All scores of a network. NaN where labels, masks or a teacher are missing."""

    miou: float = float("nan")
    """Percent."""
    pixel_accuracy: float = float("nan")
    """Percent."""
    per_class: tuple[float, ...] = ()
    """IoU of each class in percent; NaN for classes absent from the labels."""
    mask_information: float = float("nan")
    """In nats; see `MaskInformation`."""
    balanced_mask_information: float = float("nan")
    """The same with more weight on rare classes; needs the source model's class shares."""
    anchored_information: float = float("nan")
    """In nats; see `AnchoredInformation`. Needs the source model's reference too."""
    entropy: float = float("nan")
    """Mean entropy of the predicted probabilities on held-out images, in nats."""
    agreement: float = float("nan")
    """Mean IoU between the predictions of student and teacher, 0 to 1."""
    neighbourhood_density: float = float("nan")
    """In nats; see `NeighbourhoodDensity`."""
    predicted_classes: int = 0
    """Classes with at least a thousandth of the predicted pixels; few after a collapse."""
    class_entropy: float = float("nan")
    """Entropy of the histogram of predicted classes, in nats; low after a collapse."""
    class_share: tuple[float, ...] = ()
    """Share of the held-out pixels that each class is predicted for."""
    labelled_share: tuple[float, ...] = ()
    """Share of the labelled pixels that each class is predicted for."""
    labelled_images: int = 0
    held_out_images: int = 0
    leave_one_out: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """miou, mask_information, balanced_mask_information and anchored_information of all images but one,
    in the order of the images. They say how much of a difference between two networks is chance."""

    @property
    def variety(self) -> Variety:
        """The class variety, which is compared with the source model's to recognise a collapse."""
        return Variety(self.predicted_classes, self.class_entropy)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values without `leave_one_out`; NaN becomes None, because JSON has no NaN."""
        plain = {name: _without_nan(value) for name, value in vars(self).items()}
        del plain["leave_one_out"]
        return plain | {"per_class": [_without_nan(iou) for iou in self.per_class] or None}

    def logged(self) -> dict[str, float]:
        """Return the scores that are logged during training, without those that are missing."""
        scores = {name: getattr(self, name) for name in _LABEL_FREE_SCORES}
        scores = {"val_miou": self.miou} | scores
        if not self.held_out_images:
            del scores["predicted_classes"]
        return {name: float(number) for name, number in scores.items() if not np.isnan(number)}


_LABEL_FREE_SCORES = (
    "mask_information",
    "balanced_mask_information",
    "anchored_information",
    "entropy",
    "agreement",
    "neighbourhood_density",
    "predicted_classes",
    "class_entropy",
)


def _without_nan(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value


@dataclass(frozen=True)
class Examination:
    """The images that networks are scored on: labelled ones, and held-out target images with masks.

    Calling it with a network returns the scores that are logged during training.
    """

    classes: ClassSet
    labelled: tuple[LabelledImage, ...] = ()
    held_out: tuple[ImageFile, ...] = ()
    id_map: IdMap | None = None
    config: EvaluationConfig = field(default_factory=EvaluationConfig)
    reference: SourceReference | None = None
    """Of the source model on the held-out images, needed for balanced_mask_information and
    anchored_information."""

    def __call__(self, network: Segmenter, teacher: Segmenter | None = None) -> dict[str, float]:
        return self.score(network, teacher).logged()

    def score(self, network: Segmenter, teacher: Segmenter | None = None) -> Score:
        """Score a network in eval mode; with its teacher, the agreement is scored too."""
        labelled = self._labelled_scores(network)
        label_free = self._label_free_scores(network, teacher)
        leave_one_out = label_free.leave_one_out() | labelled.pop("leave_one_out", {})
        values: dict[str, Any] = labelled | label_free.values()
        values["predicted_classes"] = int(values.get("predicted_classes", 0))
        num_pixels = label_free.histogram.sum()
        share = tuple(map(float, label_free.histogram / num_pixels)) if num_pixels else ()
        return Score(
            leave_one_out=leave_one_out,
            labelled_images=len(self.labelled),
            held_out_images=len(self.held_out),
            class_share=share,
            **values,
        )

    def with_source(self, source: Segmenter) -> Examination:
        """Return this examination for the students of a source model in eval mode, and for itself."""
        predictions = self._held_out_predictions(source)
        return replace(self, reference=SourceReference.of(len(self.classes), predictions))

    def _held_out_predictions(
        self, network: Segmenter
    ) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        for file in self.held_out:
            image = _read(file)
            ids = predict_file_probabilities(network, file, image, self.config).argmax(0)
            yield ids, predict_views(network, image, self.config)

    def matrix(self, network: Segmenter, progress: ProgressSink | None = None) -> ConfusionMatrix:
        """Count one confusion matrix over all labelled images, at the labels' own size.

        Raises:
            DataError: an image and its labels differ in size.
        """
        matrix = ConfusionMatrix(len(self.classes))
        bar = Progress("evaluated", len(self.labelled), progress) if progress else None
        for item in self.labelled:
            labels = item.labels()
            probabilities = predict_file_probabilities(network, item, item.read(), self.config)
            predictions = probabilities.argmax(0)
            if predictions.shape != labels.shape:
                raise DataError(
                    f"labels {str(item.label_path)!r} are {labels.shape[1]}x{labels.shape[0]}, their"
                    f" image is {predictions.shape[1]}x{predictions.shape[0]}: give pairs of equal size"
                )
            matrix.add(labels, predictions)
            if bar:
                bar.advance(1)
        return matrix

    def _labelled_scores(self, network: Segmenter) -> dict[str, Any]:
        if not self.labelled:
            return {}
        matrix = self.matrix(network)
        return {
            "miou": matrix.miou(),
            "pixel_accuracy": matrix.pixel_accuracy(),
            "per_class": tuple(map(float, matrix.iou())),
            "leave_one_out": {"miou": tuple(matrix.leave_one_out_miou().tolist())},
            "labelled_share": tuple(map(float, matrix.predicted_share() / 100)),
        }

    def _label_free_scores(self, network: Segmenter, teacher: Segmenter | None) -> LabelFreeScores:
        scores = LabelFreeScores(len(self.classes), self.reference)
        for file in self.held_out:
            image = _read(file)
            taught = None
            if teacher is not None:
                taught = predict_file_probabilities(teacher, file, image, self.config).argmax(0)
            mask_ids = self.id_map(file.image_id) if self.id_map else None
            needs_views = self.reference is not None and mask_ids is not None
            views = predict_views(network, image, self.config) if needs_views else None
            probabilities = predict_file_probabilities(network, file, image, self.config)
            scores.add(probabilities, mask_ids, taught, views)
        return scores


def _read(file: ImageFile) -> np.ndarray:
    return file.read(max_pixels=None)  # its size was accepted when masks were made
