"""What all checkpoints of mmsegmentation, and of the programs made from it, have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

State = Mapping[str, Tensor]
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
"""RGB of 0 to 255."""
COPIES = ("ema_model.", "imnet_model.", "teacher_model.")
NOT_NEEDED = ("auxiliary_head.", "proj_head.", "feat_distributions.", "backbone.head.")
"""Auxiliary heads, SePiCo's statistics, ImageNet's classifier."""


def student_of(state: State) -> tuple[State, list[str], tuple[str, ...]]:
    """(weights to load, keys of copies, notes): the student's, or the EMA copy's where it is alone."""
    copies = [key for key in state if key.startswith(COPIES)]
    if not has(state, "backbone.") and has(state, "ema_model.backbone."):
        note = "the weights are those of the EMA copy (ema_model.)"
        return under(state, "ema_model."), [], (note,)
    if any(key.startswith("ema_model.") for key in copies):
        note = (
            "the file also holds an EMA copy (ema_model.): the student was loaded; source_weights"
            " (--source-weights ema) takes the copy"
        )
        return state, copies, (note,)
    return state, copies, ()


def classes_of_meta(content: Any) -> tuple[str, ...] | None:
    """The class names that mmsegmentation keeps beside the weights."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping):
        return None
    inner = meta.get("dataset_meta")
    names = inner.get("classes") if isinstance(inner, Mapping) else meta.get("CLASSES")
    if isinstance(names, (list, tuple)) and names and all(isinstance(n, str) for n in names):
        return tuple(names)
    return None


def strangers(state: State, known: tuple[str, ...]) -> dict[str, Tensor]:
    """Tensors of no known part: the loader reports them as unexpected."""
    return {key: value for key, value in state.items() if not key.startswith(known)}


def has(state: State, start: str) -> bool:
    """Whether a key begins so."""
    return any(key.startswith(start) for key in state)


def under(state: State, start: str) -> dict[str, Tensor]:
    """The tensors whose keys begin so, without that beginning."""
    return {key.removeprefix(start): v for key, v in state.items() if key.startswith(start)}
