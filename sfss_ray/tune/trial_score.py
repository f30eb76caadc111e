"""The score of a trial, and the guard that keeps a search away from collapsed students."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfss_ray.evaluation.label_free import Variety, lost_variety, worth
from sfss_ray.models.source import Source
from sfss_ray.runtime.run_folder import write_json

if TYPE_CHECKING:
    from sfss_ray.evaluation.examination import Examination
    from sfss_ray.models.segmenter import Segmenter

GUARDED = "guarded_score"
"""What the search maximises: the score, or COLLAPSED for a collapsed student."""
COLLAPSED = -1e6
SOURCE_SCORES_FILE = "source_scores.json"


@dataclass(frozen=True)
class TrialWatch:
    """Scores a student with the examination, and adds the score that Tune compares.

    A student that lost variety compared with the source model on the same held-out images is
    `collapsed`.
    """

    examination: Examination
    score: str
    source: Source
    folder: Path
    """Where the source model's own scores are written, once for all trials."""

    def __call__(self, network: Segmenter, teacher: Segmenter | None = None) -> dict[str, float]:
        source_scores = self._source_scores(network) if self.examination.held_out else {}
        share = tuple(source_scores.get("class_share", ()))
        examination = dataclasses.replace(self.examination, source_share=share)
        scores = examination(network, teacher)
        value = worth(self.score, scores.get(self.score, math.nan))
        if not math.isfinite(value):  # Tune would rank a NaN best
            return scores | {GUARDED: COLLAPSED, "collapsed": 0.0}
        collapsed = bool(source_scores) and lost_variety(_variety(scores), _variety(source_scores))
        guarded = COLLAPSED if collapsed else value
        return scores | {"score": value, GUARDED: guarded, "collapsed": float(collapsed)}

    def _source_scores(self, network: Segmenter) -> dict[str, Any]:
        """Return the source model's scores on the held-out images. The first trial computes them."""
        path = self.folder / SOURCE_SCORES_FILE
        if not path.exists():
            device = next(network.parameters()).device
            unlabelled = dataclasses.replace(self.examination, labelled=())
            write_json(path, unlabelled.score(self.source.load(str(device)).network).as_dict())
        return json.loads(path.read_text())


def _variety(scores: dict[str, Any]) -> Variety:
    return Variety(int(scores["predicted_classes"]), scores["class_entropy"])
