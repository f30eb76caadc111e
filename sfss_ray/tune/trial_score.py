"""The score of a trial, and the guard that keeps a search away from collapsed students."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sfss_ray.evaluation.label_free import worth
from sfss_ray.models.source import Source
from sfss_ray.storage.places import Place
from sfss_ray.train.student_watch import IS_COLLAPSED, StudentWatch

if TYPE_CHECKING:
    from sfss_ray.evaluation.examination import Examination
    from sfss_ray.models.segmenter import Segmenter

GUARDED = "guarded_score"
"""What the search maximises: the score, or COLLAPSED for a collapsed student."""
COLLAPSED = -1e6


@dataclass(frozen=True)
class TrialWatch:
    """Scores a student with the examination, and adds the score that Tune compares.

    A student that lost variety compared with the source model on the same held-out images is
    `collapsed`.
    """

    examination: Examination
    score: str
    source: Source
    folder: Place
    """Where the source model's own scores are written, once for all trials."""

    def __call__(self, network: Segmenter, teacher: Segmenter | None = None) -> dict[str, float]:
        scores = StudentWatch(self.examination, self.source, self.folder)(network, teacher)
        value = worth(self.score, scores.get(self.score, math.nan))
        if not math.isfinite(value):  # Tune would rank a NaN best
            return scores | {GUARDED: COLLAPSED, IS_COLLAPSED: 0.0}
        collapsed = scores.get(IS_COLLAPSED, 0.0)
        guarded = COLLAPSED if collapsed else value
        return scores | {"score": value, GUARDED: guarded, IS_COLLAPSED: collapsed}
