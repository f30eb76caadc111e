"""Scoring a network on folders of images: mIoU where there are labels, label-free scores else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from sfss_ray.config import EvaluationConfig
from sfss_ray.data.class_sets import ClassSet
from sfss_ray.data.folders import ImageFile, LabelledImage, read_image, read_labels
from sfss_ray.errors import DataError
from sfss_ray.evaluation.metrics import ConfusionMatrix
from sfss_ray.evaluation.scores import MaskInformation, predicted_classes
from sfss_ray.models.segmenter import Segmenter

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
    entropy: float = float("nan")
    """Mean entropy of the predicted probabilities on held-out images, in nats."""
    predicted_classes: int = 0
    """Classes with at least a thousandth of the predicted pixels: a collapse shows here."""
    labelled_images: int = 0
    held_out_images: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values; NaN becomes None, as JSON has no NaN."""
        plain = {name: _plain(value) for name, value in vars(self).items()}
        return plain | {"per_class": [_plain(v) for v in self.per_class] or None}


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

    def __call__(self, network: Segmenter) -> dict[str, float]:
        score = self.score(network)
        seen = {"val_miou": score.miou, "mask_information": score.mask_information}
        seen["entropy"] = score.entropy
        if self.held_out:
            seen["predicted_classes"] = float(score.predicted_classes)
        return {name: value for name, value in seen.items() if not np.isnan(value)}

    def score(self, network: Segmenter) -> Score:
        """Score a network in eval mode."""
        miou, accuracy, per_class = self._with_labels(network)
        information, uncertainty, shown = self._without_labels(network)
        return Score(
            miou=miou,
            pixel_accuracy=accuracy,
            per_class=per_class,
            mask_information=information,
            entropy=uncertainty,
            predicted_classes=shown,
            labelled_images=len(self.labelled),
            held_out_images=len(self.held_out),
        )

    def _with_labels(self, network: Segmenter) -> tuple[float, float, tuple[float, ...]]:
        matrix = ConfusionMatrix(len(self.classes))
        for item in self.labelled:
            labels = read_labels(item.label_path)
            probabilities = predict_probabilities(network, read_image(item.path), self.config)
            predictions = probabilities.argmax(0)
            if predictions.shape != labels.shape:
                raise DataError(
                    f"labels {str(item.label_path)!r} are {labels.shape[1]}x{labels.shape[0]}, their"
                    f" image {predictions.shape[1]}x{predictions.shape[0]}: give pairs of one size"
                )
            matrix.add(labels, predictions)
        if not self.labelled:
            return float("nan"), float("nan"), ()
        return matrix.miou(), matrix.pixel_accuracy(), tuple(map(float, matrix.iou()))

    def _without_labels(self, network: Segmenter) -> tuple[float, float, int]:
        information = MaskInformation(len(self.classes))
        histogram = np.zeros(len(self.classes))
        uncertainty = []
        for file in self.held_out:
            probabilities = predict_probabilities(network, read_image(file.path), self.config)
            predictions = probabilities.argmax(0)
            histogram += np.bincount(predictions.ravel(), minlength=len(histogram))
            uncertainty.append(-(probabilities * np.log(probabilities + 1e-12)).sum(0).mean())
            if self.id_map:
                information.add(predictions, self.id_map(file.image_id))
        if not self.held_out:
            return float("nan"), float("nan"), 0
        score = information.value() if self.id_map else float("nan")
        return score, float(np.mean(uncertainty)), predicted_classes(histogram)


@torch.no_grad()
def predict_probabilities(
    network: Segmenter, image: np.ndarray, config: EvaluationConfig
) -> np.ndarray:
    """uint8 (H, W, 3) -> float32 (C, H, W) probabilities: single scale, no flip.

    The network sees at most `max_size` pixels on the longest side; its logits are scaled to the
    image's own size before the softmax.
    """
    height, width = image.shape[:2]
    shrink = min(1.0, config.max_size / max(height, width))
    if shrink < 1:
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    parameter = next(network.parameters())
    pixels = torch.from_numpy(image).to(parameter.device).permute(2, 0, 1)[None].float() / 255
    pixels = _at_least(pixels, 32)
    logits = network.logits(pixels, (height, width))
    return logits.softmax(1)[0].cpu().numpy()


def _at_least(pixels: torch.Tensor, least: int) -> torch.Tensor:
    """Scale very small images up: networks with stride 32 need one cell at least."""
    height, width = pixels.shape[-2:]
    if min(height, width) >= least:
        return pixels
    size = (max(height, least), max(width, least))
    return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)


def predict_images(
    network: Segmenter, images: Iterable[ImageFile], config: EvaluationConfig
) -> Iterator[tuple[ImageFile, np.ndarray, np.ndarray]]:
    """(file, RGB image, uint8 (H, W) train ids) one after the other."""
    for file in images:
        image = read_image(file.path)
        yield file, image, predict_probabilities(network, image, config).argmax(0).astype(np.uint8)


def readable(images: Sequence[ImageFile], errors: Sequence[str] | dict[str, str]):
    """Images that are not among the ids in `errors`, as a tuple."""
    return tuple(image for image in images if image.image_id not in errors)
