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
"""What the search maximises: the score, or for a collapsed student COLLAPSED."""
COLLAPSED = -1e6
SOURCE_FILE = "source_scores.json"


@dataclass(frozen=True)
class TrialWatch:
    """Looks at a student as the examination does, then names what Tune compares.

    A student that lost variety against the source model, on the same held-out images, is `collapsed`.
    """

    examination: Examination
    score: str
    source: Source
    folder: Path
    """Where the source model's own scores are kept, once for all trials."""

    def __call__(self, network: Segmenter, teacher: Segmenter | None = None) -> dict[str, float]:
        source = self._source_scores(network) if self.examination.held_out else {}
        share = tuple(source.get("class_share", ()))
        seen = dataclasses.replace(self.examination, source_share=share)(network, teacher)
        value = worth(self.score, seen.get(self.score, math.nan))
        if not math.isfinite(value):  # Tune would take NaN for the best of all
            return seen | {GUARDED: COLLAPSED, "collapsed": 0.0}
        judged = {"score": value, GUARDED: value, "collapsed": 0.0}
        if source and lost_variety(_variety(seen), _variety(source)):
            judged |= {GUARDED: COLLAPSED, "collapsed": 1.0}
        return seen | judged

    def _source_scores(self, network: Segmenter) -> dict[str, Any]:
        """The source model's on the held-out images; the first trial to look writes them down."""
        path = self.folder / SOURCE_FILE
        if not path.exists():
            device = next(network.parameters()).device
            unlabelled = dataclasses.replace(self.examination, labelled=())
            write_json(path, unlabelled.score(self.source.load(str(device)).network).as_dict())
        return json.loads(path.read_text())


def _variety(seen: dict[str, Any]) -> Variety:
    return Variety(int(seen["predicted_classes"]), seen["class_entropy"])
