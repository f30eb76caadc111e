"""A student and its EMA copy in one checkpoint: which of the two a user gets.

Where public programs keep the copy: DAFormer, HRDA, MIC and SePiCo under `ema_model.` beside `model.`;
CROTS under `ema_net.` beside `net.`; torchvision's references in the entry `model_ema`, with a counter
`n_averaged`; timm in `state_dict_ema`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sfss_ray.config import SourceWeights
from sfss_ray.errors import CheckpointError
from sfss_ray.models.families.keys import container_of, strip_wrappers, tensors_of

ENTRIES = (
    "model_ema",
    "ema_model",
    "ema_net",
    "state_dict_ema",
    "ema_state_dict",
    "ema",
    "teacher",
)
"""Entries of a file beside the one that holds the student."""
PREFIXES = ("ema_model.", "ema_net.", "model_ema.", "ema.")
"""Starts of keys beside those of the student."""
_OTHERS = ("imnet_model.", "teacher_model.")
"""Never loaded: ImageNet's weights, a teacher of another task."""
_COUNTER = "n_averaged"


@dataclass(frozen=True)
class Chosen:
    """The tensors of one copy, and what a user should know about the choice."""

    state: dict[str, Tensor]
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def choose_copy(content: Any, weights: SourceWeights, path: object) -> Chosen:
    """The student of a checkpoint or its EMA copy; `auto` takes the student where there is one.

    Raises:
        CheckpointError: the chosen one is not in the file.
    """
    state = tensors_of(content)
    name, copy, keys = _ema_copy(content, state)
    others = [key for key in state if key.startswith(_OTHERS)]
    student = {key: v for key, v in state.items() if key not in {*keys, *others}}
    # The copy's own names must occur again: what is left besides it may be statistics or a projection.
    has_student = not copy or any(key in student for key in copy)
    if weights == "ema" and not copy:
        raise CheckpointError(no_copy(path))
    if weights == "student" and not has_student:
        raise CheckpointError(
            f"source model {str(path)!r} holds an EMA copy ({name}) alone: give auto or ema for its"
            " weights (source_weights)"
        )
    if weights == "ema" or not has_student:
        return Chosen(copy, notes=(f"the weights are those of the EMA copy ({name})",))
    if not copy:
        return Chosen(student, tuple(others))
    note = (
        f"the file also holds an EMA copy ({name}): the student was loaded; source_weights"
        " (--source-weights ema) takes the copy"
    )
    return Chosen(student, (*keys, *others), (note,))


def no_copy(path: object) -> str:
    """The refusal of a file that has no EMA copy."""
    known = ", ".join((*PREFIXES[:2], *ENTRIES[:1]))
    return (
        f"source model {str(path)!r} holds no EMA copy ({known} and the like): leave the choice of"
        " weights (source_weights) at auto"
    )


def _ema_copy(
    content: Any, state: Mapping[str, Tensor]
) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """(its name in the file, its tensors under the student's names, the file's keys of it)."""
    for prefix in PREFIXES:
        keys = tuple(key for key in state if key.startswith(prefix))
        copy = {strip_wrappers(key.removeprefix(prefix)): state[key] for key in keys}
        copy.pop(_COUNTER, None)
        rest = state.keys() - keys
        # A few tensors that the rest has not are a decay or a counter, no copy.
        if copy and (len(copy) >= len(rest) or not rest.isdisjoint(copy)):
            return prefix, copy, keys
    if isinstance(content, Mapping) and container_of(content) is not None:
        for name in ENTRIES:
            copy = tensors_of(content.get(name))
            keys = tuple(f"{name}.{key}" for key in copy)
            copy.pop(_COUNTER, None)
            if copy:
                return name, copy, keys
    return "", {}, ()
