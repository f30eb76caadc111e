"""The description of every knob: its name, type, default and text."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from pathlib import Path

import pytest

import sfss_ray
from sfss_ray import config as module
from sfss_ray.config import Config, flatten
from sfss_ray.config.knobs import list_knobs
from sfss_ray.config.presets import PRESETS
from sfss_ray.streets.default import embedded_config

CLASSES = [member for member in vars(module).values() if dataclasses.is_dataclass(member)]
assert module.Config in CLASSES
assert len(CLASSES) > 8


def test_every_knob_is_listed_once_with_its_default():
    knobs = {
        knob.name: list(knob.default) if isinstance(knob.default, tuple) else knob.default
        for knob in list_knobs()
    }
    assert knobs == flatten(Config())
    assert list(knobs) == list(flatten(Config()))
    assert len(list_knobs()) == len(knobs)


def test_texts_are_those_below_the_knobs():
    texts = {knob.name: knob.text for knob in list_knobs()}
    assert texts["train.num_steps"] == "Optimiser steps."
    assert texts["pretrain.optim.learning_rate"] == "Peak learning rate of the backbone."
    assert texts["masks.images_per_shard"] == (
        "Images per Parquet file. A killed worker repeats at most one file."
    )
    assert all(texts.values())
    assert not any("\n" in text or "  " in text for text in texts.values())


def test_research_knobs_are_set_by_no_preset_search_or_default():
    research = {knob.name for knob in list_knobs() if knob.type.level == "research"}
    assert "train.loss.label_space" in research
    changed = {name for values in PRESETS.values() for name in values}
    default = flatten(Config())
    changed |= {
        name for name, value in flatten(embedded_config()).items() if value != default[name]
    }
    assert not research & changed
    source = (Path(sfss_ray.__file__).parent / "tune" / "search.py").read_text()
    assert not [name for name in research if f'"{name}"' in source]


@pytest.mark.parametrize("documented", CLASSES)
def test_every_knob_has_its_line_below(documented):
    """A part of the tree is described by its own class instead."""
    parts = {part.__name__ for part in CLASSES}
    (definition,) = ast.parse(inspect.getsource(documented)).body
    assert isinstance(definition, ast.ClassDef)
    assert ast.get_docstring(definition)
    knobs = 0
    for statement, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign):
            knobs += 1
            if ast.unparse(statement.annotation) in parts:
                continue
            text = getattr(getattr(below, "value", None), "value", None)
            assert isinstance(text, str), f"{ast.unparse(statement)} has no line below it"
            assert text.strip().endswith((".", ")")), text
    assert knobs == len(dataclasses.fields(documented))
