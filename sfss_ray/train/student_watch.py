"""Scores of a student during its training, some of them relative to its source model."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfss_ray.models.source import Source
from sfss_ray.runtime.run_folder import write_json

if TYPE_CHECKING:
    from sfss_ray.evaluation.examination import Examination
    from sfss_ray.models.segmenter import Segmenter

SOURCE_SCORES_FILE = "source_scores.json"


@dataclass(frozen=True)
class StudentWatch:
    """Scores a student with the examination, balanced_mask_information included.

    That score needs the class shares of the source model on the held-out images.
    """

    examination: Examination
    source: Source
    folder: Path
    """Where the scores of the source model are written, once for all evaluations."""

    def __call__(self, network: Segmenter, teacher: Segmenter | None = None) -> dict[str, float]:
        share = tuple(self.source_scores(network).get("class_share", ()))
        return dataclasses.replace(self.examination, source_share=share)(network, teacher)

    def source_scores(self, network: Segmenter) -> dict[str, Any]:
        """Return the source model's scores on the held-out images, {} without such images.

        The first call computes them, on the device of `network`.
        """
        if not self.examination.held_out:
            return {}
        path = self.folder / SOURCE_SCORES_FILE
        if not path.exists():
            device = next(network.parameters()).device
            unlabelled = dataclasses.replace(self.examination, labelled=())
            write_json(path, unlabelled.score(self.source.load(str(device)).network).as_dict())
        return json.loads(path.read_text())
