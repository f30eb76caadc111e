"""Facts of a model file, and the mark on a student that its run judged worse than its source model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfss_ray.models.model_file import read_content
from sfss_ray.storage.files import write_torch
from sfss_ray.storage.places import Place

_WORD, _REASON = "verdict", "verdict_reason"


def read_facts(path: Place) -> dict[str, Any]:
    """Return the facts of a model file."""
    return read_content(path)["facts"]


def mark_model(path: Place, word: str, reason: str) -> None:
    """Add a verdict to the facts of a model file, which is replaced in one step.

    Args:
        path: A model file.
        word: The verdict, such as "worse: keep the source model".
        reason: One sentence.
    """
    content = read_content(path)
    facts = content["facts"] | {_WORD: word, _REASON: reason}
    if facts != content["facts"]:
        write_torch(path, content | {"facts": facts})


def describe_mark(facts: Mapping[str, Any]) -> str:
    """Return the mark among a model's facts as one line for people; empty without a mark."""
    if _WORD not in facts:
        return ""
    return f"the run that trained this model judged it {facts[_WORD]}. {facts.get(_REASON, '')}".strip()
