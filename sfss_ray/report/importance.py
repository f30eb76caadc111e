"""Which searched settings matter: their share of the differences between good and other trials."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sfss_ray.config.space import short_names
from sfss_ray.report.comparison import searched_settings
from sfss_ray.report.formatting import is_number
from sfss_ray.report.report_record import RunRecord, TrialRow

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MIN_TRIALS = 6
"""Fewer trials say nothing about single settings."""
_GOOD_SHARE = 0.25  # of the trials, which are compared with all
_SHUFFLES = 2000
_CHANCE = 0.1  # that any of the settings looks as important by chance


@dataclass(frozen=True)
class Importance:
    """The importance of each setting over the trials of a search."""

    shares: dict[str, float]
    """Short name -> share, the largest first. The shares sum to 1."""
    matters: tuple[str, ...]
    """Names of the settings whose order of values follows the scores by more than chance."""
    num_trials: int

    def text(self) -> str:
        """Return the finding in words, and the share of each setting."""
        shares = [f"{name} {100 * share:.0f} %" for name, share in self.shares.items()]
        return f"{self._finding()} Importance by PED-ANOVA: {', '.join(shares)}."

    def _finding(self) -> str:
        if not self.matters:
            return (
                f"None of the searched settings matters measurably: over {self.num_trials} trials their"
                " values explain the score no better than chance."
            )
        names = " and ".join(self.matters)
        verb = "matters" if len(self.matters) == 1 else "matter"
        remark = (
            " The other settings explain the score no better than chance."
            if len(self.matters) < len(self.shares)
            else ""
        )
        return f"{names} {verb} over {self.num_trials} trials.{remark}"


def find_importance(trials: Sequence[TrialRow]) -> Importance | None:
    """Compute the importance of each setting by PED-ANOVA (Watanabe et al. 2023), as Optuna does.

    It compares where the best quarter of the trials lies along a setting with where all of them lie.
    With few trials, shares differ although nothing matters. So a setting matters only if its rank
    correlation with the score (for names: the spread of the mean ranks) exceeds that of shuffled
    scores in more than 90 % of the shuffles, for the most extreme of all settings.

    Args:
        trials: Of a search. Only those with a score count, stopped ones included.

    Returns:
        None with fewer than MIN_TRIALS such trials, without settings, or if all scores are equal.
    """
    names = searched_settings(trials)
    scored = [
        t
        for t in trials
        if is_number(t.score) and not t.collapsed and set(names) <= t.values.keys()
    ]
    scores = np.array([t.score for t in scored], float)
    if len(scored) < MIN_TRIALS or not names or np.ptp(scores) == 0:
        return None
    titles = short_names(names)
    shares = dict(zip(titles, _shares(scored, names, scores), strict=True))
    ordered = dict(sorted(shares.items(), key=lambda pair: -pair[1]))
    strengths = np.array([_strength([t.values[n] for t in scored], scores[None]) for n in names])[
        :, 0
    ]
    limit = _chance_limit(scored, names, scores)
    matters = [title for title, s in zip(titles, strengths, strict=True) if s > limit]
    return Importance(ordered, tuple(t for t in ordered if t in matters), len(scored))


def importance_lines(record: RunRecord) -> list[str]:
    """Return the importance as lines of text, none where it is not known."""
    importance = find_importance(record.trials)
    if importance is None:
        return []
    return ["", importance.text()]


def _shares(trials: Sequence[TrialRow], names: Sequence[str], scores: np.ndarray) -> list[float]:
    """Return the share of each setting, by Optuna."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        distributions = {n: _distribution([t.values[n] for t in trials]) for n in names}
        study = optuna.create_study(direction="maximize")
        for trial, score in zip(trials, scores, strict=True):
            params = {
                n: t if isinstance(t := trial.values[n], (str, bool)) else float(t) for n in names
            }
            study.add_trial(
                optuna.trial.create_trial(
                    params=params, distributions=distributions, value=float(score)
                )
            )
        evaluator = PedAnovaImportanceEvaluator(target_quantile=_GOOD_SHARE)
        shares = get_param_importances(study, evaluator=evaluator, params=list(names))
    return [float(shares[name]) if math.isfinite(shares[name]) else 0.0 for name in names]


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    """Return Optuna's distribution of values that a search has drawn."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    numbers = [float(v) for v in values if is_number(v)]
    if len(numbers) < len(values):
        return CategoricalDistribution(sorted(set(values), key=str))
    low, high = min(numbers), max(numbers)
    return FloatDistribution(low, high, log=low > 0 and high / low >= 10)


def _strength(values: Sequence[Any], scores: np.ndarray) -> np.ndarray:
    """Return (S,) in [0, 1]: how well values explain the ranks of scores (S, trials).

    For numbers it is the absolute rank correlation, for names the correlation ratio of the ranks.
    """
    ranks = scores.argsort(1).argsort(1).astype(float)
    ranks -= ranks.mean(1, keepdims=True)
    total = np.sqrt((ranks**2).sum(1))
    if all(is_number(value) for value in values):
        numbers = np.array(values, float)
        below, equal = numbers[None] < numbers[:, None], numbers[None] == numbers[:, None]
        order = below.sum(1) + equal.sum(1) / 2
        order = order - order.mean()
        length = float(np.sqrt((order**2).sum()))
        return np.abs(ranks @ order) / np.maximum(total * length, 1e-12)
    between = np.zeros(len(scores))
    for word in set(values):
        members = np.array([value == word for value in values])
        between += members.sum() * ranks[:, members].mean(1) ** 2
    return np.sqrt(between) / np.maximum(total, 1e-12)


def _chance_limit(trials: Sequence[TrialRow], names: Sequence[str], scores: np.ndarray) -> float:
    """Return the strength that the strongest setting stays below in 90 % of shuffles."""
    generator = np.random.default_rng(0)
    shuffled = generator.permuted(np.tile(scores, (_SHUFFLES, 1)), axis=1)
    strongest = np.max([_strength([t.values[n] for t in trials], shuffled) for n in names], axis=0)
    return float(np.quantile(strongest, 1 - _CHANCE))
