"""The student with the best label-free score of a training, with `train.keep best`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sfss_ray.train.student_watch import IS_COLLAPSED, KEEP_SCORE

_KEY = "best"


class BestStudent:
    """Student and teacher of the evaluation with the best label-free score so far.

    It is a part of the checkpoint with all weights, so an interrupted run keeps the same student as
    an uninterrupted one.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Any] | None = None

    def offer(
        self, step: int, scores: Mapping[str, float], student: nn.Module, teacher: nn.Module
    ) -> None:
        """Keep the networks if their score is the best so far; of equal ones the later is kept.

        Networks that collapsed, or have no score, are never kept.
        """
        score = scores.get(KEEP_SCORE, math.nan)
        if scores.get(IS_COLLAPSED) or not math.isfinite(score):
            return
        if self._kept is not None and score < self._kept["score"]:
            return
        self._kept = {"step": step, "score": score}
        self._kept |= {"student": copy_weights(student), "teacher": copy_weights(teacher)}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, {} while nothing is kept."""
        return {} if self._kept is None else {_KEY: self._kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what a checkpoint kept."""
        self._kept = state.get(_KEY)


def kept_state(state: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Return step, student and teacher to keep of a training's last checkpoint, and which they are.

    Returns:
        The state, and "best" or "last". The last one is kept too where no evaluation had a score, or
        all networks had collapsed.
    """
    return (state[_KEY], "best") if _KEY in state else (state, "last")


def copy_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy on the CPU of all weights and statistics, by name."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
