"""Options come from signatures, docstrings and the config classes."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from sfss_ray import cli
from sfss_ray.cli.calls import Program, parse
from sfss_ray.cli.options import (
    REQUIRED,
    all_options,
    argument_options,
    argument_texts,
    general_options,
    knob_options,
    option_name,
)


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_option_has_its_own_name_and_a_text(name):
    options = all_options(cli.VERBS[name])
    names = [spelling for option in options for spelling in option.names]
    assert len(set(names)) == len(names)
    assert all(option.text for option in options), [o.name for o in options if not o.text]
    assert not {"--progress", "--config-file"} & set(names)


def test_arguments_have_their_types_and_defaults():
    options = {option.name: option for option in argument_options(cli.VERBS["export"])}
    assert list(options) == ["--model", "--output-file", "--size", "--card", "--class-groups"]
    assert (options["--model"].metavar, options["--model"].default) == ("PATH", REQUIRED)
    assert (options["--size"].metavar, options["--size"].default) == ("INT INT", (512, 1024))
    (strict,) = [o for o in argument_options(cli.VERBS["masks"]) if o.name == "--strict"]
    assert (strict.metavar, strict.negative) == ("", "--no-strict")


def test_objects_that_have_names_are_given_by_name(monkeypatch):
    """Several names may follow one option."""

    def work(path: Path | str, *, loggers: Sequence[object | Literal["a", "b"]] = ()) -> None:
        """Work.

        Args:
            path: A path.
            loggers: Loggers.
        """

    verb = dataclasses.replace(cli.VERBS["export"], is_positional=False)
    monkeypatch.setattr(type(verb), "function", lambda self: work)
    monkeypatch.setattr(type(verb), "documentation", lambda self: inspect.getdoc(work))
    (path, loggers) = argument_options(verb)
    assert (path.metavar, path.text) == ("PATH", "A path.")
    assert (loggers.metavar, loggers.choices) == ("NAME [NAME ...]", ("a", "b"))
    call = parse(Program(verb, "x"), ["--path", "p", "--loggers", "a", "b"])
    assert call.arguments == {"path": Path("p"), "loggers": ("a", "b")}


def test_folders_and_files_of_output_have_one_name():
    for verb in cli.VERBS.values():
        outputs = {o.name for o in argument_options(verb) if "output" in o.name}
        assert outputs <= {"--output-dir", "--output-file"}


def test_knobs_have_their_types_and_levels():
    options = {option.name: option for option in knob_options(cli.VERBS["train"])}
    assert options["--train.augment.crop-size"].metavar == "INT INT"
    assert options["--train.loss.teacher-scales"].metavar == "FLOAT [FLOAT ...]"
    assert options["--white-level"].metavar == "FLOAT"
    assert options["--train.batch-norm"].choices == ("auto", "adapt", "target", "frozen")
    assert options["--train.augment.flip"].negative == "--train.augment.no-flip"
    assert options["--train.num-steps"].level == "common"
    assert options["--train.accumulate"].level == "advanced"
    assert options["--train.loss.label-space"].level == "research"


def test_general_options_are_those_that_the_verb_can_use():
    names = {name: {o.name for o in general_options(verb)} for name, verb in cli.VERBS.items()}
    assert "--dry-run" in names["adapt"] & names["tune"]
    assert "--dry-run" not in names["train"] | names["predict"]
    assert "--preset" in names["predict"]
    assert "--preset" not in names["data check"]
    assert all(
        {"--config", "--print-config", "--help-all"} <= general for general in names.values()
    )


def test_names_of_arguments_and_knobs_become_options():
    assert option_name("target_images") == "--target-images"
    assert option_name("train.num_steps") == "--train.num-steps"


def test_texts_of_arguments_are_read_from_a_docstring():
    docstring = """Do something.

Args:
    images: Folder of images: its folders
        are searched too.
    rows, columns: Pixels.

    size: (height, width) of
        a window.

Returns:
    nothing: at all.
"""
    assert argument_texts(docstring) == {
        "images": "Folder of images: its folders are searched too.",
        "rows": "Pixels.",
        "columns": "Pixels.",
        "size": "(height, width) of a window.",
    }
    assert argument_texts("Do something.") == {}
