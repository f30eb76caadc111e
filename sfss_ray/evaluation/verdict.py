"""The verdict on a run: whether its student is better than the source model, in words.

With target labels mIoU decides, and without them one label-free score. A difference counts as evidence
only where it exceeds what the choice of images explains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sfss_ray.evaluation.label_free import lost_variety
from sfss_ray.report.report_record import IMPROVED, NO_EVIDENCE, WORSE, ClassLoss, Verdict

if TYPE_CHECKING:
    from sfss_ray.evaluation.examination import Score

LABEL_FREE_SCORE = "anchored_information"
"""The attribute of `Score` that decides without labels."""
MIN_IMAGES = 3
"""Fewer images give no verdict but a collapse: their spread says nothing."""
MIN_IOU, MIN_SHARE = 5.0, 0.1
"""Percent of IoU, or of the predicted pixels, from which the loss of a class is stated."""
KEPT_PART = 0.5
"""A class that keeps less than this part is named."""


def label_free_score(score: Score) -> float:
    """Return the score that decides without labels; higher is better, NaN where it is missing."""
    return getattr(score, LABEL_FREE_SCORE)


def judge(source: Score, student: Score, classes: Sequence[str]) -> Verdict:
    """Compare a student with its source model on the same images.

    A student that lost variety (see `lost_variety`) is worse, whatever its label-free score. Classes
    that lost more than half are named, whatever the word: fewer predicted pixels may be right, as after
    a source model that saw traffic lights everywhere.

    Args:
        source: All scores of the source model, anchored_information included.
        student: All scores of the student.
        classes: Names of the classes.
    """
    uses_labels = math.isfinite(source.miou) and math.isfinite(student.miou)
    losses = class_losses(source, student, classes, uses_labels)
    comparison = _compare_miou(source, student) if uses_labels else _compare(source, student)
    if not uses_labels and student.held_out_images and _collapsed(source, student):
        word, reason = WORSE, _describe_collapse(source, student)
    elif comparison is None:
        word, reason = NO_EVIDENCE, "There are no labels and no held-out images with masks"
    else:
        word, reason = comparison.word(), comparison.describe()
    score_name = comparison.name if comparison else ""
    return Verdict(
        word, f"{reason}{_name_losses(losses, word, uses_labels)}.", losses, score_name, uses_labels
    )


def class_losses(
    source: Score, student: Score, classes: Sequence[str], uses_labels: bool
) -> tuple[ClassLoss, ...]:
    """Return the classes that lost more than half, the largest loss first.

    With labels the IoU counts, from MIN_IOU of the source model on. Without them the share of the
    predicted pixels counts, from MIN_SHARE on.
    """
    if uses_labels:
        values, least = (source.per_class, student.per_class), MIN_IOU
    else:
        values, least = (_percent(source.class_share), _percent(student.class_share)), MIN_SHARE
    losses = [
        ClassLoss(name, before, after)
        for name, before, after in zip(classes, *values, strict=False)
        if before >= least and after < KEPT_PART * before
    ]
    return tuple(sorted(losses, key=lambda loss: loss.after - loss.before))


def chance(source: Sequence[float], student: Sequence[float]) -> float:
    """Return the largest change of a score that the choice of images explains, at 95 %.

    The jackknife of paired differences: with d_i the change of the score over all N images but image i,

        error = sqrt((N - 1) / N * sum_i (d_i - mean(d))^2),  chance = t(N - 1) * error

    and t the 97.5 % point of Student's distribution. It needs no resampling and fits scores that are no
    mean over images. Both networks see the same images, so what an image adds to both cancels out.
    Frames of one video resemble each other, and then the true value is larger.

    Source: Tukey 1958, "Bias and confidence in not-quite large samples"; Efron and Stein 1981.

    Args:
        source: (N,) scores of the source model, each without one image.
        student: (N,) scores of the student without the same images.

    Returns:
        A number of 0 or more; infinity for fewer than MIN_IMAGES images.
    """
    changes = np.subtract(student, source)
    changes = changes[np.isfinite(changes)]
    count = len(changes)
    if count < MIN_IMAGES:
        return math.inf
    error = math.sqrt((count - 1) / count * float(((changes - changes.mean()) ** 2).sum()))
    return student_t(count - 1) * error


def student_t(freedom: int) -> float:
    """Return the 97.5 % point of Student's distribution with 2 or more degrees of freedom.

    The expansion in 1 / freedom of Abramowitz and Stegun, 26.7.5, at most 3 % too small.
    """
    terms = (1.95996, 2.37227, 2.82250, 2.55585)
    return sum(term / freedom**power for power, term in enumerate(terms))


@dataclass(frozen=True)
class _Comparison:
    """A score of both networks, and how much of its change may be chance."""

    name: str
    images: int
    """Number of the images."""
    before: float
    after: float
    chance: float
    digits: int
    uses_labels: bool

    @property
    def change(self) -> float:
        """The change, positive where the student is better."""
        return self.after - self.before

    def word(self) -> str:
        """Return the verdict."""
        if abs(self.change) <= self.chance:
            return NO_EVIDENCE
        return IMPROVED if self.change > 0 else WORSE

    def describe(self) -> str:
        """Return the reason of the verdict."""
        verb = {IMPROVED: "rises", WORSE: "falls", NO_EVIDENCE: "goes"}[self.word()]
        digits = self.digits
        values = f"from {self.before:.{digits}f} to {self.after:.{digits}f}"
        noise = (
            f"{MIN_IMAGES} images are needed to tell it from chance"
            if math.isinf(self.chance)
            else f"chance explains up to {self.chance:.{digits}f}"
        )
        labels = "With" if self.uses_labels else "Without"
        return (
            f"{labels} labels, {self.name} on {self.images} images {verb} {values}"
            f" ({self.change:+.{digits}f}, {noise})"
        )


def _compare_miou(source: Score, student: Score) -> _Comparison:
    return _Comparison(
        "mIoU",
        student.labelled_images,
        source.miou,
        student.miou,
        _chance_of("miou", source, student),
        digits=1,
        uses_labels=True,
    )


def _compare(source: Score, student: Score) -> _Comparison | None:
    """Compare the label-free scores; None where one is missing."""
    before, after = label_free_score(source), label_free_score(student)
    if not (math.isfinite(before) and math.isfinite(after)):
        return None
    return _Comparison(
        LABEL_FREE_SCORE,
        student.held_out_images,
        before,
        after,
        _chance_of(LABEL_FREE_SCORE, source, student),
        digits=3,
        uses_labels=False,
    )


def _chance_of(name: str, source: Score, student: Score) -> float:
    return chance(source.leave_one_out.get(name, ()), student.leave_one_out.get(name, ()))


def _collapsed(source: Score, student: Score) -> bool:
    return lost_variety(student.variety, source.variety)


def _describe_collapse(source: Score, student: Score) -> str:
    before, after = source.variety, student.variety
    return (
        f"The student collapsed: it predicts {after.classes} classes, the source model {before.classes}"
        f" (entropy of the class histogram {after.entropy:.2f} against {before.entropy:.2f})"
    )


def _name_losses(losses: Sequence[ClassLoss], word: str, uses_labels: bool) -> str:
    """Return the end of the sentence, which names the classes that lost more than half."""
    if not losses:
        return ""
    conjunction = "but" if word == IMPROVED else "and"
    subject = "a class loses" if len(losses) == 1 else f"{len(losses)} classes lose"
    quantity, digits = ("IoU", 1) if uses_labels else ("predicted pixels", 2)
    owner = "its" if len(losses) == 1 else "their"
    names = [
        f"{loss.name} ({loss.before:.{digits}f} to {loss.after:.{digits}f} %)" for loss in losses
    ]
    return f", {conjunction} {subject} more than half of {owner} {quantity}: {', '.join(names)}"


def _percent(shares: Sequence[float]) -> list[float]:
    return [100 * share for share in shares]
