"""Label-free scores that the package does not have, for comparison with those that it has.

All take the predictions of a student on held-out images, and most also those of its source model. Higher
is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from trial_predictions import Predictions

from sfss_ray.evaluation.label_free import Agreement
from sfss_ray.evaluation.source_reference import MIN_SHARE
from sfss_ray.evaluation.view_consistency import ViewConsistency

ANCHOR_SHARE = 0.5
"""Share of the pixels of each class, the most confident ones, in which the source model is trusted."""


def mean_iou(first: np.ndarray, second: np.ndarray, classes: int) -> float:
    """Return the mean IoU, 0 to 1, between class ids of equal shape over the classes of either."""
    agreement = Agreement(classes)
    agreement.add(first, second)
    return agreement.value()


def view_consistency(student: Predictions) -> float:
    """Return the agreement of a student with itself over mirrored and zoomed images."""
    classes = student.coarse.shape[1]
    return float(np.mean([mean_iou(student.ids, view, classes) for view in student.views]))


def consistency_over_source_classes(student: Predictions, source: Predictions) -> float:
    """Return the same over the classes that the source model predicts, 0 for one that is lost."""
    classes = student.coarse.shape[1]
    share = np.bincount(source.ids.ravel(), minlength=classes) / source.ids.size
    consistency = ViewConsistency(np.flatnonzero(share > MIN_SHARE))
    consistency.add(classes, student.ids, list(student.views))
    return consistency.value()


def steadiness(student: Predictions) -> float:
    """Return the agreement of a student with itself after noise, blur and darkening."""
    classes = student.coarse.shape[1]
    return float(np.mean([mean_iou(student.ids, ids, classes) for ids in student.disturbed]))


def source_agreement(student: Predictions, source: Predictions) -> float:
    """Return the agreement of a student with the source model."""
    return mean_iou(student.ids, source.ids, student.coarse.shape[1])


def views_of_both(student: Predictions, source: Predictions) -> float:
    """Return the agreement of a student with the source model's views.

    What the source model says in all views is likely right, and a student that keeps it agrees with all.
    """
    classes = student.coarse.shape[1]
    return float(np.mean([mean_iou(student.ids, view, classes) for view in source.views]))


def trusted_pixels(source: Predictions) -> np.ndarray:
    """Return (N, H, W) bool: the most confident pixels of each class that the source model predicts."""
    trusted = np.zeros(source.ids.shape, bool)
    for label in np.unique(source.ids):
        of_class = source.ids == label
        limit = np.quantile(source.confidence[of_class], 1 - ANCHOR_SHARE)
        trusted |= of_class & (source.confidence >= limit)
    return trusted


def kept_anchors(student: Predictions, source: Predictions) -> float:
    """Return the mean over classes of the share of trusted pixels that the student keeps."""
    trusted = trusted_pixels(source)
    labels = source.ids[trusted]
    unchanged = (student.ids == source.ids)[trusted]
    return float(np.mean([unchanged[labels == label].mean() for label in np.unique(labels)]))


def information_maximum(student: Predictions) -> float:
    """Return the mutual information between pixel and class: H(mean p) - mean H(p), in nats."""
    p = student.coarse.astype(np.float64).transpose(1, 0, 2, 3).reshape(student.coarse.shape[1], -1)
    p /= p.sum(0)
    mean = p.mean(1)
    of_mean = -(mean * np.log(mean + 1e-12)).sum()
    return float(of_mean + (p * np.log(p + 1e-12)).sum(0).mean())


@dataclass(frozen=True)
class Committee:
    """The mean opinion of several students and their source model."""

    ids: np.ndarray
    """(N, H / 4, W / 4) class ids."""
    classes: int

    @staticmethod
    def of(members: Sequence[Predictions]) -> Committee:
        """Average the probabilities of all members."""
        total = sum(member.coarse.astype(np.float32) for member in members)
        assert not isinstance(total, int), "a committee has members"
        return Committee(total.argmax(1), total.shape[1])

    def agreement(self, student: Predictions) -> float:
        """Return the mean IoU between a student and the committee, 0 to 1."""
        return mean_iou(student.coarse.argmax(1), self.ids, self.classes)
