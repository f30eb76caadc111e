"""Trials of a search: their record, their folders, their evaluations, and the best of them."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfss_ray.config import Config
from sfss_ray.errors import TrainingError
from sfss_ray.storage.places import Place
from sfss_ray.train.training_inputs import Prepared
from sfss_ray.tune.trial_score import TrialWatch


@dataclass(frozen=True)
class Trial:
    """One trained student."""

    name: str
    folder: Place
    values: dict[str, Any]
    """The searched settings by dotted name."""
    metrics: dict[str, Any]
    """Of the last step that was reported."""
    status: str
    """finished, stopped early, or failed."""
    error: str = ""

    @property
    def score(self) -> float:
        """The score that trials are compared by, higher is better. -inf if it failed or has none."""
        score = self.metrics.get("score", -math.inf)
        return score if self.status != "failed" and math.isfinite(score) else -math.inf

    @property
    def collapsed(self) -> bool:
        """Whether its student lost many of the classes that the source model predicts."""
        return bool(self.metrics.get("collapsed", 0))

    def as_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return vars(self) | {"folder": str(self.folder)}

    @staticmethod
    def from_json(values: dict[str, Any], root: Place) -> Trial:
        """Rebuild a trial from `as_json`; `root` is the folder of the trials."""
        folder = Path(values["folder"])
        # The text of an address lacks its options, so the root gives them.
        return Trial(
            **{**values, "folder": folder if isinstance(root, Path) else root / folder.name}
        )


@dataclass(frozen=True)
class SearchPlan:
    """What all trials of a search share. It is pickled and sent to them."""

    prepared: Prepared
    folder: Place
    """Of the trials."""
    config: Config
    score: str

    def watch(self, config: Config) -> TrialWatch:
        """Return the watch that scores a trial's student."""
        prepared = self.prepared
        return TrialWatch(prepared.examination(config), self.score, prepared.source, self.folder)


def trial_folder(root: Place, values: dict[str, Any]) -> Place:
    """Return a trial's folder, named by its values: the same point resumes from its checkpoint."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
    return root / f"trial-{digest}"


def progress_folder(trial: Place, config: Config) -> Place:
    """Return the folder of a trial's progress file. Ray Train's workers use one below the trial's."""
    return trial / "train" if config.compute.workers.largest > 1 else trial


def evaluations_per_trial(config: Config) -> int:
    """Return how often a training evaluates its student."""
    return math.ceil(config.train.num_steps / config.train.evaluate_every)


def grace_steps(config: Config) -> int:
    """Return the step from which a trial may be stopped.

    It is the first evaluation after the contrast has reached its full weight.
    """
    every = config.train.evaluate_every
    ramp_end = config.train.loss.ramp[1] * config.train.num_steps
    return min(config.train.num_steps, (math.floor(ramp_end / every) + 1) * every)


def best_trial(trials: list[Trial]) -> int:
    """Return the index of the finished trial with the highest score. Collapsed ones never win.

    Raises:
        TrainingError: no trial finished, or all that did collapsed or have no score.
    """
    finished = [i for i, trial in enumerate(trials) if trial.status == "finished"]
    if not finished:
        reasons = sorted({trial.error for trial in trials if trial.error})
        raise TrainingError(
            f"no trial of {len(trials)} finished: {(reasons or ['none finished'])[0]}"
        )
    sound = [i for i in finished if not trials[i].collapsed]
    if not sound:
        raise TrainingError(
            f"all {len(finished)} finished trials collapsed: their students predict far fewer classes"
            " than the source model. Lower train.optim.learning_rate or the weights in tune.space, and"
            " search in a new folder"
        )
    best = max(sound, key=lambda i: trials[i].score)
    if not math.isfinite(trials[best].score):
        raise TrainingError(
            f"none of {len(sound)} finished trials has a score, so none can be chosen: the held-out"
            " images have no masks, or a network returns NaN. Check the masks with `sfss-ray masks"
            " inspect`, hold out more images (evaluation.held_out_share), or choose another tune.score"
        )
    return best
