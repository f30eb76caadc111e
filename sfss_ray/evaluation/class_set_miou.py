"""mIoU over the field's class sets (mIoU-19, mIoU-16, mIoU-13), all from one confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sfss_ray.data.class_sets import CLASS_SETS, ClassSet
from sfss_ray.evaluation.confusion_matrix import ConfusionMatrix


@dataclass(frozen=True)
class NamedMiou:
    """Mean IoU over the classes of a class set that are in the labels."""

    class_set: str
    classes: int
    """Number of classes in the set."""
    absent: tuple[str, ...]
    """Classes of the set that are absent from the labels; the mean leaves them out."""
    miou: float
    """Percent; NaN when every class is absent."""
    official: float = float("nan")
    """Percent, with IoU 0 for classes that are predicted but absent from the labels."""

    @property
    def name(self) -> str:
        """mIoU-19 and so on."""
        return f"mIoU-{self.classes}"

    def line(self) -> str:
        """Return 'mIoU-16 (synthia-16): 45.30', followed by the absent classes."""
        note = ""
        if self.absent:
            num_present = self.classes - len(self.absent)
            absent = ", ".join(self.absent)
            note = f", mean of {num_present} classes; absent from the labels: {absent}"
        if self.official < self.miou:
            note += f"; official (IoU 0 for those that are predicted): {self.official:.2f}"
        return f"{self.name} ({self.class_set}): {self.miou:.2f}{note}"


def named_mious(
    matrix: ConfusionMatrix, classes: ClassSet, label_classes: ClassSet
) -> list[NamedMiou]:
    """Return the mIoU of each known class set that model and labels both contain whole.

    mIoU-13 is a mean of the same IoUs as mIoU-16, because the matrix is the same.

    Args:
        matrix: Counts over the model's classes.
        classes: The model's classes, in the order of the matrix.
        label_classes: The classes that the labels can contain.
    """
    iou = dict(zip(classes.classes, matrix.iou(), strict=True))
    official = dict(zip(classes.classes, matrix.official_iou(), strict=True))
    common = {name for name in classes.classes if _is_in_labels(name, classes, label_classes)}
    class_sets = [s for s in CLASS_SETS.values() if common >= set(s.classes)]
    return [_named_miou(class_set, iou, official) for class_set in class_sets]


def _is_in_labels(name: str, classes: ClassSet, label_classes: ClassSet) -> bool:
    """Return whether labels contain a class whole: by its name, or with all members of a group."""
    members = dict(zip(classes.classes, classes.members, strict=False)).get(name, ())
    is_joined = bool(members) and set(members) <= set(label_classes.classes)
    return is_joined or name in label_classes.classes


def _named_miou(
    class_set: ClassSet, iou: dict[str, float], official: dict[str, float]
) -> NamedMiou:
    absent = tuple(name for name in class_set.classes if np.isnan(iou[name]))
    means = [
        _mean_of_finite([ious[name] for name in class_set.classes]) for ious in (iou, official)
    ]
    return NamedMiou(class_set.name, len(class_set), absent, *means)


def _mean_of_finite(ious: list[float]) -> float:
    finite = [iou for iou in ious if not np.isnan(iou)]
    return float(np.mean(finite)) if finite else float("nan")
