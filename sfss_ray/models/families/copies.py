"""Choice between a student and its EMA copy in one checkpoint.

Where public programs save the copy:

- DAFormer, HRDA, MIC and SePiCo: under `ema_model.` beside `model.`;
- CROTS: under `ema_net.` beside `net.`;
- torchvision's references: in the entry `model_ema`, with a counter `n_averaged`;
- timm: in the entry `state_dict_ema`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from sfss_ray.config import SourceWeights
from sfss_ray.errors import CheckpointError
from sfss_ray.models.families.keys import State, container_of, strip_wrappers, tensors_of

COPY_ENTRIES = (
    "model_ema",
    "ema_model",
    "ema_net",
    "state_dict_ema",
    "ema_state_dict",
    "ema",
    "teacher",
)
"""Entries that hold the copy, beside the container of the student."""
COPY_PREFIXES = ("ema_model.", "ema_net.", "model_ema.", "ema.")
"""Prefixes of the copy's keys, beside those of the student."""
_NEVER_LOADED = ("imnet_model.", "teacher_model.")
"""Weights of ImageNet, and the teacher of another task."""
_COUNTER = "n_averaged"


@dataclass(frozen=True)
class ChosenCopy:
    """The tensors of the student or of its EMA copy, and notes for the user about the choice."""

    state: dict[str, Tensor]
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def choose_copy(content: Any, weights: SourceWeights, path: object) -> ChosenCopy:
    """Return the student of a checkpoint or its EMA copy.

    Args:
        content: The loaded object.
        weights: `student`, `ema`, or `auto`, which prefers the student.
        path: The file, for messages.

    Raises:
        CheckpointError: the file does not hold the requested weights.
    """
    state = tensors_of(content)
    name, copy, keys = _find_ema_copy(content, state)
    other_keys = [key for key in state if key.startswith(_NEVER_LOADED)]
    student = {key: v for key, v in state.items() if key not in {*keys, *other_keys}}
    # What remains beside a copy may be statistics or a projection. A student has the copy's own names.
    has_student = not copy or any(key in student for key in copy)

    # An explicit request that the file cannot satisfy is an error, never a silent substitution.
    if weights == "ema" and not copy:
        raise CheckpointError(no_ema_copy_message(path))
    if weights == "student" and not has_student:
        raise CheckpointError(
            f"source model {str(path)!r} holds an EMA copy ({name}) but no student: set source_weights"
            " to auto or ema"
        )
    if weights == "ema" or not has_student:
        return ChosenCopy(copy, notes=(f"the weights are those of the EMA copy ({name})",))

    # Without a request the student is preferred, and a note tells the user about the copy.
    if not copy:
        return ChosenCopy(student, tuple(other_keys))
    note = (
        f"the file also holds an EMA copy ({name}): the student was loaded; source_weights"
        " (--source-weights ema) selects the copy"
    )
    return ChosenCopy(student, (*keys, *other_keys), (note,))


def no_ema_copy_message(path: object) -> str:
    """Return the error for a request of the EMA copy of a file that has none."""
    examples = ", ".join((*COPY_PREFIXES[:2], *COPY_ENTRIES[:1]))
    return (
        f"source model {str(path)!r} holds no EMA copy ({examples} and the like): set source_weights"
        " to auto"
    )


class _EmaCopy(NamedTuple):
    """An EMA copy in a file; all fields are empty if there is none."""

    name: str
    state: dict[str, Tensor]
    """Tensors under the student's names."""
    keys: tuple[str, ...]
    """Keys in the file."""


def _find_ema_copy(content: Any, state: State) -> _EmaCopy:
    for prefix in COPY_PREFIXES:
        keys = tuple(key for key in state if key.startswith(prefix))
        copy = {strip_wrappers(key.removeprefix(prefix)): state[key] for key in keys}
        copy.pop(_COUNTER, None)
        remaining = state.keys() - keys
        # A few tensors that occur only here are a decay or a counter, not a copy.
        if copy and (len(copy) >= len(remaining) or not remaining.isdisjoint(copy)):
            return _EmaCopy(prefix, copy, keys)
    if isinstance(content, Mapping) and container_of(content) is not None:
        for name in COPY_ENTRIES:
            copy = tensors_of(content.get(name))
            keys = tuple(f"{name}.{key}" for key in copy)
            copy.pop(_COUNTER, None)
            if copy:
                return _EmaCopy(name, copy, keys)
    return _EmaCopy("", {}, ())
