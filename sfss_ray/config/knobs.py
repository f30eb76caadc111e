"""A description of every knob, read from the config classes: for help pages and documents."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

from sfss_ray.config.ranges import KnobType, knob_types
from sfss_ray.config.tree import Config


@dataclass(frozen=True)
class Knob:
    """One knob of the config tree."""

    name: str
    """Dotted, such as train.loss.temperature."""
    type: KnobType
    default: Any
    text: str
    """Its documentation, on one line."""


@functools.cache
def list_knobs() -> tuple[Knob, ...]:
    """Return every knob of the config tree, in its order."""
    return tuple(_knobs_below(Config(), ""))


def _knobs_below(config: Any, prefix: str) -> list[Knob]:
    knobs: list[Knob] = []
    texts = _attribute_texts(type(config))
    for name, knob_type in knob_types(type(config)).items():
        value = getattr(config, name)
        if knob_type.is_group:
            knobs += _knobs_below(value, f"{prefix}{name}.")
        else:
            knobs.append(Knob(f"{prefix}{name}", knob_type, value, texts.get(name, "")))
    return knobs


def _attribute_texts(config_class: type) -> dict[str, str]:
    """Return name -> the string below each attribute, read from the class's source."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body
    assert isinstance(definition, ast.ClassDef)
    texts: dict[str, str] = {}
    for statement, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(below, ast.Expr):
            text = getattr(below.value, "value", None)
            if isinstance(text, str) and isinstance(statement.target, ast.Name):
                texts[statement.target.id] = " ".join(text.split())
    return texts
