"""The options of a verb: its function's arguments, general ones, and the knobs that it uses."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from sfss_ray.cli.verbs import Verb
from sfss_ray.config.knobs import Knob
from sfss_ray.config.presets import PRESETS

ARCHITECTURE = "--architecture"
REQUIRED = inspect.Parameter.empty
_NOT_OPTIONS = ("config", "progress")
"""Arguments of functions that a command line fills in itself."""


@dataclass(frozen=True)
class Option:
    """One option of a verb, as help pages, completion and checks of names see it."""

    name: str
    """With its dashes: --target-images."""
    text: str
    metavar: str = ""
    """Placeholder of the value; empty for a flag."""
    default: Any = None
    choices: tuple[str, ...] = ()
    level: str = "common"
    """common, advanced or research."""
    negative: str = ""
    """The name that switches a flag off, if there is one."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every spelling that the command line takes."""
        return (self.name, self.negative) if self.negative else (self.name,)


def option_name(name: str) -> str:
    """Return the option of an argument or knob: target_images -> --target-images."""
    return f"--{name.replace('_', '-')}"


def parameters(verb: Verb) -> list[inspect.Parameter]:
    """Return the function's arguments that are options, with types that words can be parsed to."""
    signature = inspect.signature(verb.function(), eval_str=True)
    return [
        parameter.replace(annotation=_as_path(parameter.annotation))
        for parameter in signature.parameters.values()
        if parameter.name not in _NOT_OPTIONS
    ]


def model_argument(verb: Verb) -> str | None:
    """Return the name of the function's argument that is a source model, or None."""
    from sfss_ray.models.source import SourceLike

    signature = inspect.signature(verb.function(), eval_str=True)
    models = (SourceLike, SourceLike | None)
    return next((p.name for p in signature.parameters.values() if p.annotation in models), None)


def _as_path(annotation: Any) -> Any:
    """Return Path for models, cards, groups and text paths: on a command line they are all paths."""
    from sfss_ray.data.group_files import ClassGroupsLike
    from sfss_ray.models.card import CardLike
    from sfss_ray.models.source import SourceLike
    from sfss_ray.storage.places import Place

    kinds: tuple[Any, ...] = (Path | str, Place | str, SourceLike, CardLike, ClassGroupsLike)
    path_types: dict[Any, Any] = dict.fromkeys(kinds, Path)
    optional_types = {kind | None: Path | None for kind in path_types}
    return (path_types | optional_types).get(annotation, _as_names(annotation))


def _as_names(annotation: Any) -> Any:
    """Return a tuple of names for a sequence of names, or of objects that may be given by name."""
    if get_origin(annotation) is Sequence:
        entry = get_args(annotation)[0]
        for part in (entry, *get_args(entry)):
            if get_origin(part) is Literal:
                return tuple[part, ...]
    return annotation


def argument_options(verb: Verb) -> list[Option]:
    """Return an option per argument of the verb's function, in the order of its signature."""
    texts = argument_texts(verb.documentation())
    return [
        Option(
            option_name(parameter.name),
            texts.get(parameter.name, ""),
            _metavar(parameter.annotation),
            parameter.default,
            _choices(parameter.annotation),
            negative=f"--no-{parameter.name.replace('_', '-')}"
            if parameter.annotation is bool
            else "",
        )
        for parameter in parameters(verb)
    ]


def general_options(verb: Verb) -> list[Option]:
    """Return the options that are neither an argument of the function nor a knob."""
    preset = (
        f"Named settings: {', '.join(PRESETS)}. A config file and single options win over them."
    )
    config = (
        "JSON or YAML file of settings by name. best_config.json of a search is one, and the output of"
        " --print-config. Single options win over it."
    )
    dry_run = (
        "Print a plan of the run and start nothing. All inputs are checked, and time and memory are"
        " measured for seconds. The exit code is 1 when something is missing."
    )
    print_config = "Print the effective config as YAML, and start nothing."
    architecture = (
        "Function that builds a network of your own, as in package.module:function or file.py:function."
        " It takes no arguments and returns the torch module, or the result of wrap_model. The weights"
        " come from the model file, or from a state dict given as the model. For a state dict the card"
        " or wrap_model must name the classes."
    )
    options = [Option("--config", config, "FILE"), Option("--print-config", print_config)]
    if model_argument(verb):
        options.insert(0, Option(ARCHITECTURE, architecture, "FUNCTION"))
    if verb.uses_presets():
        options.insert(0, Option("--preset", preset, "NAME", choices=tuple(PRESETS)))
    if verb.can_dry_run:
        options.append(Option("--dry-run", dry_run))
    options.append(Option("--help", "Show the common options. -h does the same."))
    options.append(Option("--help-all", "Show every option."))
    return options


def knob_options(verb: Verb) -> list[Option]:
    """Return an option per knob that the verb uses, in the order of the config."""
    return [_knob_option(knob) for knob in verb.knobs()]


def _knob_option(knob: Knob) -> Option:
    group, _, name = knob.name.rpartition(".")
    is_flag = knob.type.plain is bool
    return Option(
        option_name(knob.name),
        knob.text,
        _metavar(knob.type.plain),
        knob.default,
        knob.type.choices,
        knob.type.level,
        negative=option_name(f"{group}.no_{name}".lstrip(".")) if is_flag else "",
    )


def all_options(verb: Verb) -> list[Option]:
    """Return every option that the verb takes."""
    return [*argument_options(verb), *general_options(verb), *knob_options(verb)]


def _metavar(annotation: Any) -> str:
    """Return the words for a type on a help page: INT, FLOAT FLOAT, PATH. A flag has none."""
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        if parts == [int, str]:  # a count or a range of counts; see config.ranges.Counts
            return "INT|MIN-MAX"
        annotation = parts[0]
    if get_origin(annotation) is tuple:
        entries = get_args(annotation)
        first = _metavar(entries[0])
        return f"{first} [{first} ...]" if Ellipsis in entries else " ".join(map(_metavar, entries))
    if get_origin(annotation) is Literal:
        return "NAME"
    if annotation is bool:
        return ""
    return "TEXT" if annotation is str else str(annotation.__name__).upper()


def _choices(annotation: Any) -> tuple[str, ...]:
    """Return the values of a Literal, alone or as the entries of a tuple."""
    if get_origin(annotation) is tuple:
        annotation = get_args(annotation)[0]
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def argument_texts(docstring: str) -> Mapping[str, str]:
    """Return name -> text of the `Args:` section of a Google-style docstring."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", docstring, re.MULTILINE)
    texts: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", section.group(1) if section else ""):
        names, colon, text = entry.strip().partition(": ")
        if colon:
            texts |= {name.strip(): " ".join(text.split()) for name in names.split(",")}
    return texts
