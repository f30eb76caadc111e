"""mIoU over the class sets of the field, from one confusion matrix: mIoU-19, mIoU-16, mIoU-13."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sfss_ray.data.class_sets import CLASS_SETS, ClassSet
from sfss_ray.evaluation.confusion_matrix import ConfusionMatrix


@dataclass(frozen=True)
class NamedMiou:
    """Mean IoU over the classes of a set that the labels show."""

    class_set: str
    classes: int
    """Classes of the set."""
    absent: tuple[str, ...]
    """Those of them that no label shows: they have no IoU, and the mean leaves them out."""
    miou: float
    """Percent; NaN when no class is shown."""
    official: float = float("nan")
    """Percent, with IoU 0 for classes that are predicted but that no label shows."""

    @property
    def name(self) -> str:
        """mIoU-19 and so on."""
        return f"mIoU-{self.classes}"

    def line(self) -> str:
        """'mIoU-16 (synthia-16): 45.30', and what was absent."""
        shown = self.classes - len(self.absent)
        note = (
            ""
            if not self.absent
            else (f", mean of {shown} classes; absent from the labels: {', '.join(self.absent)}")
        )
        if self.official < self.miou:
            note += f"; official (IoU 0 for those that are predicted): {self.official:.2f}"
        return f"{self.name} ({self.class_set}): {self.miou:.2f}{note}"


def named_mious(
    matrix: ConfusionMatrix, classes: ClassSet, label_classes: ClassSet
) -> list[NamedMiou]:
    """mIoU of each known set whose every class the model and the labels both have.

    The IoUs are those of the one matrix: mIoU-13 is a mean of the same numbers as mIoU-16.
    """
    iou = dict(zip(classes.classes, matrix.iou(), strict=True))
    official = dict(zip(classes.classes, matrix.official_iou(), strict=True))
    both = set(classes.classes) & set(label_classes.classes)
    sets = [known for known in CLASS_SETS.values() if both >= set(known.classes)]
    return [_named(known, iou, official) for known in sets]


def _named(known: ClassSet, iou: dict[str, float], official: dict[str, float]) -> NamedMiou:
    absent = tuple(name for name in known.classes if np.isnan(iou[name]))
    means = [_mean([values[name] for name in known.classes]) for values in (iou, official)]
    return NamedMiou(known.name, len(known), absent, *means)


def _mean(values: list[float]) -> float:
    shown = [value for value in values if not np.isnan(value)]
    return float(np.mean(shown)) if shown else float("nan")
