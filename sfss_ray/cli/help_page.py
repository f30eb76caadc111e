"""Help pages: the list of verbs, and the options of one verb."""

from __future__ import annotations

import dataclasses
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from sfss_ray.cli.options import (
    REQUIRED,
    Option,
    argument_options,
    general_options,
    knob_options,
)
from sfss_ray.cli.verbs import VERBS, Verb

_WIDEST = 100
_INDENT = 38
"""Column at which the text of an option begins."""
_FEW_CHOICES = 4
"""Longer lists of choices are on the whole page only."""


def verb_list(group: str = "") -> str:
    """Return the help page of the command itself, or of the verbs that begin with one word."""
    prefix = f"{group} ".lstrip()
    lines = [f"  {n:15}{verb.summary}" for n, verb in VERBS.items() if n.startswith(prefix)]
    return (
        f"usage: sfss-ray {prefix}VERB [OPTIONS]\n\n"
        "Adapt a segmentation model without the source data.\n\n"
        + "\n".join(lines)
        + "\n\n`sfss-ray VERB --help` shows the common options of a verb, `--help-all` all of them.\n"
        "`sfss-ray --version` prints the version, `sfss-ray --print-completion bash|zsh` a script that\n"
        "completes verbs and options in a shell."
    )


def verb_page(
    verb: Verb,
    program: str,
    show_all: bool = False,
    text: str | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> str:
    """Return the help page of a verb.

    Args:
        verb: The verb.
        program: What is typed to run it: `sfss-ray adapt`, or a recipe's script.
        show_all: List every option with its whole text, else the common ones with their first sentence.
        text: Introduction of the page. None: the docstring of the verb's function.
        defaults: Values of arguments by option name that replace those of the function.
    """
    text = _introduction(verb, show_all) if text is None else text.strip()
    arguments = [
        dataclasses.replace(option, default=(defaults or {}).get(option.name, option.default))
        for option in argument_options(verb)
    ]
    usage = _fill(f"usage: {program} {_usage(verb, arguments)}", "", "    ")
    blocks = [usage, text]
    blocks.append(_block("arguments", arguments, show_all))
    blocks.append(_block("general", general_options(verb), show_all))
    knobs = knob_options(verb)
    blocks += _knob_blocks(knobs) if show_all else [_common_knobs(knobs)]
    blocks.append(_research_note(knobs, program))
    return "\n\n".join(block for block in blocks if block)


def _introduction(verb: Verb, whole: bool) -> str:
    """Return the docstring of the verb's function up to its sections, or its first paragraph."""
    docstring = (verb.function().__doc__ or "").strip()
    paragraphs = textwrap.dedent(f"    {docstring}").split("\n\n")
    sections = ("Args:", "Returns:", "Raises:", "Arguments, results")
    introduction = []
    for paragraph in paragraphs[: None if whole else 1]:
        if paragraph.strip().startswith(sections):
            break
        introduction.append(_fill(paragraph, ""))
    return "\n\n".join(introduction)


def _usage(verb: Verb, arguments: Sequence[Option]) -> str:
    required = [option for option in arguments if option.default is REQUIRED]
    if verb.is_positional:
        words = [option.name[2:].replace("-", "_").upper() for option in required]
    else:
        words = [f"{option.name} {option.metavar}" for option in required]
    return " ".join([*words, "[OPTIONS]"])


def _common_knobs(knobs: Sequence[Option]) -> str:
    common = [option for option in knobs if option.level == "common"]
    advanced = sum(option.level == "advanced" for option in knobs)
    more = f"{advanced} more" if common else f"{advanced}"
    title = f"settings ({more} with --help-all)" if advanced else "settings"
    return _block(title, common, False) if common else title


def _knob_blocks(knobs: Sequence[Option]) -> list[str]:
    """Return a block of options per group of the config."""
    groups: dict[str, list[Option]] = {}
    for option in knobs:
        if option.level != "research":
            groups.setdefault(option.name[2:].rpartition(".")[0], []).append(option)
    return [_block(f"settings: {g}" if g else "settings", o, True) for g, o in groups.items()]


def _research_note(knobs: Sequence[Option], program: str) -> str:
    """Say that knobs of the ablation studies exist, and how to set them."""
    research = [option for option in knobs if option.level == "research"]
    if not research:
        return ""
    return _fill(
        f"{len(research)} settings that only ablation studies change are not listed. They are set like"
        f" the others, for example by {program} {research[0].name} {_example(research[0])}, or in a"
        " config file. --print-config prints every setting.",
        "",
    )


def _example(option: Option) -> str:
    return option.choices[-1] if option.choices else str(option.default)


def _block(title: str, options: Sequence[Option], whole: bool) -> str:
    return "\n".join([f"{title}:", *(_entry(option, whole) for option in options)])


def _entry(option: Option, whole: bool) -> str:
    """Return one option with its text, which begins beside the name if that is short enough."""
    head = f"  {option.name}"
    if option.negative:
        head += f", {option.negative}" if whole else ""
    head += f" {option.metavar}" if option.metavar else ""
    default = _default(option) if whole or option.default is not REQUIRED else ""
    text = _fill(f"{_text(option, whole)} {default}", " " * _INDENT)
    if len(head) < _INDENT - 1:
        return head + text[len(head) :]
    return f"{head}\n{text}"


def _text(option: Option, whole: bool) -> str:
    """Return the whole text or its first sentence, with the choices that it does not name."""
    text = option.text if whole else _first_sentence(option.text)
    are_named = all(re.search(rf"\b{re.escape(choice)}\b", text) for choice in option.choices)
    if option.choices and not are_named and (whole or len(option.choices) <= _FEW_CHOICES):
        text += f" One of {', '.join(option.choices)}."
    return text


def _first_sentence(text: str) -> str:
    """Return the text up to its first full stop or semicolon, without remarks in brackets."""
    text = re.sub(r"(?<=\w) \([^()]*\)", "", text)
    for end in re.finditer(r"[.;](?=\s)", text):
        sentence = text[: end.start()]
        if not sentence.endswith(".."):
            return f"{sentence}."
    return text


def _default(option: Option) -> str:
    """Return the default in brackets; nothing where it is None, empty, or a flag that is off."""
    default = option.default
    if default is REQUIRED:
        return "(required)"
    if default is None or default is False or default in ("", ()):
        return ""
    return f"[{' '.join(map(str, default))}]" if isinstance(default, tuple) else f"[{default}]"


def _fill(text: str, indent: str, later_indent: str | None = None) -> str:
    """Wrap a text to the width of the terminal, at most 100 columns."""
    width = min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST)
    return textwrap.fill(
        " ".join(text.split()),
        max(width, _INDENT + 30),
        initial_indent=indent,
        subsequent_indent=indent if later_indent is None else later_indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
