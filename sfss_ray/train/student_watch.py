"""Scores of a student during its training, some of them relative to its source model."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sfss_ray.models.source import Source
from sfss_ray.runtime.run_folder import write_json
from sfss_ray.storage.places import Place

if TYPE_CHECKING:
    from sfss_ray.evaluation.examination import Examination, Score
    from sfss_ray.evaluation.source_reference import SourceReference
    from sfss_ray.models.segmenter import Segmenter

SOURCE_SCORES_FILE, REFERENCE_FILE = "source_scores.json", "source_views.npz"
KEEP_SCORE = "label_free_score"
"""Name of the score that `train.keep best` and the verdict without labels compare."""
IS_COLLAPSED = "collapsed"
"""Name of the flag (0 or 1) of a student that lost variety compared with its source model."""


@dataclass(frozen=True)
class StudentWatch:
    """Scores a student with the examination, those that need the source model's predictions included.

    With held-out images the scores include KEEP_SCORE and IS_COLLAPSED.
    """

    examination: Examination
    source: Source
    folder: Place
    """Where scores and reference of the source model are written, once for all evaluations."""

    def __call__(self, network: Segmenter, teacher: Segmenter | None = None) -> dict[str, float]:
        source_scores = self.source_scores(network)
        examination = dataclasses.replace(self.examination, reference=self._reference())
        score = examination.score(network, teacher)
        return score.logged() | _keep_scores(score, source_scores)

    def source_scores(self, network: Segmenter) -> dict[str, Any]:
        """Return the source model's scores on the held-out images, {} without such images.

        The first call computes them, on the device of `network`.
        """
        if not self.examination.held_out:
            return {}
        path = self.folder / SOURCE_SCORES_FILE
        if not (path.exists() and (self.folder / REFERENCE_FILE).exists()):
            device = next(network.parameters()).device
            source = self.source.load(str(device)).network
            examination = dataclasses.replace(self.examination, labelled=()).with_source(source)
            assert examination.reference is not None, "there are held-out images"
            examination.reference.save(self.folder / REFERENCE_FILE)
            write_json(path, examination.score(source).as_dict())
        return json.loads(path.read_text())

    def _reference(self) -> SourceReference | None:
        from sfss_ray.evaluation.source_reference import SourceReference

        if not self.examination.held_out:
            return None
        return SourceReference.load(self.folder / REFERENCE_FILE)


def _keep_scores(score: Score, source_scores: dict[str, Any]) -> dict[str, float]:
    """Return KEEP_SCORE and IS_COLLAPSED, as far as they are known."""
    from sfss_ray.evaluation.label_free import Variety, lost_variety
    from sfss_ray.evaluation.verdict import label_free_score

    if not source_scores:
        return {}
    source = Variety(source_scores["predicted_classes"], source_scores["class_entropy"])
    scores = {IS_COLLAPSED: float(lost_variety(score.variety, source))}
    value = label_free_score(score)
    return scores | ({KEEP_SCORE: value} if math.isfinite(value) else {})
