"""A search by Optuna in which no two trials have the same values."""

from __future__ import annotations

import json
from typing import Any

import optuna
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

_ATTEMPTS = 100


class DistinctSearch(OptunaSearch):
    """Optuna's search, asked again where it repeats a point.

    Training is deterministic, so a repeated point would train the same student again. The search ends
    early if Optuna keeps repeating itself.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._suggested: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        """Return a new point, or FINISHED if 100 attempts only repeat others."""
        for _ in range(_ATTEMPTS):
            point = super().suggest(trial_id)
            text = json.dumps(point, sort_keys=True)
            if text not in self._suggested:
                self._suggested.add(text)
                return point
            # Failed trials do not influence Optuna's next suggestions.
            repeated = self._ot_trials.pop(trial_id)
            assert self._ot_study is not None
            self._ot_study.tell(repeated, state=optuna.trial.TrialState.FAIL)
        return Searcher.FINISHED
