"""The words of a command line: options taken out of them, and names refused with the right one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from sfss_ray.cli.options import all_options, argument_options, option_name
from sfss_ray.cli.verbs import VERBS, Verb
from sfss_ray.config.knobs import list_knobs
from sfss_ray.errors import ConfigError

_FORMER_NAMES = {
    "--config-file": ("--config",),
    "--output": ("--output-dir", "--output-file"),
    "--protocol": ("--preset",),
    "--num-steps": ("--train.num-steps", "--pretrain.num-steps"),
    "--num-trials": ("--tune.num-trials",),
    "--num-workers": ("--compute.num-workers",),
    "--address": ("--compute.address",),
}
"""Option names of earlier versions, with the names that replace them."""


def option_names(words: Sequence[str]) -> list[str]:
    """Return the options among the words, spelled with dashes and without their values."""
    return [
        word.partition("=")[0].replace("_", "-")
        for word in words
        if word.startswith("--") and word != "--"
    ]


def take_flag(words: Sequence[str], *names: str) -> tuple[bool, list[str]]:
    """Return whether a flag is among the words, and the words without it."""
    rest = [word for word in words if word.replace("_", "-") not in names]
    return len(rest) < len(words), rest


def take_value(words: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Return the last value of an option, and the words without the option and its values.

    Raises:
        ConfigError: the option is the last word, or another option follows it.
    """
    value: str | None = None
    rest: list[str] = []
    remaining = iter(words)
    for word in remaining:
        option, equals, joined = word.partition("=")
        if option != name:
            rest.append(word)
            continue
        value = joined if equals else next(remaining, "")
        if not value or value.startswith("--"):
            raise ConfigError(f"{name} has no value: give one, as in {name} VALUE")
    return value, rest


def split_lists(verb: Verb, words: Sequence[str]) -> list[str]:
    """Return the words with `--formats coco,cvat` as `--formats coco cvat`, for lists of names."""
    lists = {o.name for o in argument_options(verb) if o.choices and o.metavar.endswith("...]")}
    result: list[str] = []
    is_list = False
    for word in words:
        if word.startswith("--"):
            option, equals, joined = word.partition("=")
            is_list = option.replace("_", "-") in lists
            result += [option, *joined.split(",")] if is_list and equals else [word]
        else:
            result += word.split(",") if is_list else [word]
    return result


EMPTY = "\0"
"""Stands for an empty word among words without a name, so that it is told from the path '.'."""


def mark_empty_paths(verb: Verb, words: Sequence[str]) -> list[str]:
    """Refuse empty paths of named options, and return the words with EMPTY for those without a name.

    An empty path would be the current folder. It is mostly an unset variable: `--images "$IMAGES"`.

    Raises:
        ConfigError: a named path is empty.
    """
    metavars = {name: option.metavar for option in all_options(verb) for name in option.names}
    result: list[str] = []
    for word, previous in zip(words, ["", *words], strict=False):
        option, equals, value = word.partition("=")
        is_named = equals and not value and metavars.get(_dashed(option)) == "PATH"
        if is_named or (word == "" and metavars.get(_dashed(previous)) == "PATH"):
            raise empty_path(_dashed(option if is_named else previous))
        takes_value = previous.startswith("--") and metavars.get(_dashed(previous)) != ""
        result.append(EMPTY if word == "" and not takes_value else word)
    return result


def empty_path(name: str) -> ConfigError:
    """Return the error for an option or an argument whose path is empty."""
    return ConfigError(f"{name} is empty: give a path (an unset variable?)")


def _dashed(option: str) -> str:
    return option.replace("_", "-")


def refuse_unknown_options(verb: Verb, words: Sequence[str], program: str) -> None:
    """Refuse options that the verb does not use.

    Raises:
        ConfigError: an option has a former name (the new one is named), belongs to other verbs (they
            are named), or does not exist (similar ones are named).
    """
    names = {name for option in all_options(verb) for name in option.names}
    for name in option_names(words):
        if name not in names:
            raise ConfigError(_refusal(name, names, program))


def _refusal(name: str, names: set[str], program: str) -> str:
    """Return why an option is refused, and which one to use."""
    current = next((new for new in _FORMER_NAMES.get(name, ()) if new in names), None)
    if current is not None:
        return f"{name} has a new name: use {current}"
    users = [verb.name for verb in VERBS.values() if _takes(verb, name)]
    if users:
        return f"{name} is not an option of {program}: it is used by {', '.join(users)}"
    similar = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    similar += [option for option in sorted(names) if option.endswith(f".{name[2:]}")]
    advice = f"did you mean {' or '.join(dict.fromkeys(similar))}? " if similar else ""
    return f"unknown option {name} of {program}: {advice}{program} --help-all lists its options"


def _takes(verb: Verb, name: str) -> bool:
    """Return whether a verb has an option of this name; knobs are checked first, without imports."""
    knob_names = {option_name(knob.name): knob.name for knob in list_knobs()}
    positive = name.replace(".no-", ".")
    if positive in knob_names:
        return verb.uses_knob(knob_names[positive])
    return any(name in option.names for option in all_options(verb))
