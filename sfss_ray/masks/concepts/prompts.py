"""Prompts of classes: their names, or what the user writes instead."""

from __future__ import annotations

from collections.abc import Sequence

from sfss_ray.errors import ConfigError

ClassPrompts = dict[str, tuple[str, ...]]
"""Class -> its prompts, sorted. A class that is not searched for has none."""

SKIP = "-"
"""Prompt of a class that is not searched for."""
_FORM = 'write "pole: pole, street lamp; void: -"'


def class_prompts(text: str, classes: Sequence[str]) -> ClassPrompts:
    """Return the prompts of every class, in the order of the classes.

    Args:
        text: Prompts of some classes, such as "pole: pole, street lamp; void: -". All others are
            prompted with their names, in which - and _ become spaces.
        classes: Names of the classes.

    Raises:
        ConfigError: the text cannot be read, names a class twice or an unknown one, gives one prompt to
            two classes, leaves a class without a prompt, or skips all.
    """
    written = _written_prompts(text, classes)
    prompts = {n: written[n] if n in written else _own_prompt(n) for n in classes}
    owners: dict[str, str] = {}
    for name, texts in prompts.items():
        for prompt in texts:
            if owners.setdefault(prompt, name) != name:
                raise ConfigError(
                    f"concept_prompts: {prompt!r} is a prompt of {owners[prompt]!r} and of {name!r}:"
                    " give each prompt to one class"
                )
    if not owners:
        raise ConfigError("concept_prompts: no class has a prompt: give at least one a prompt")
    return prompts


def _written_prompts(text: str, classes: Sequence[str]) -> ClassPrompts:
    written: ClassPrompts = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, colon, listed = (piece.strip() for piece in part.partition(":"))
        prompts = sorted({" ".join(prompt.split()) for prompt in listed.split(",")} - {""})
        if not colon:
            raise ConfigError(f"concept_prompts: {part!r} has no colon: {_FORM}")
        if name not in classes:
            names = ", ".join(classes)
            raise ConfigError(f"concept_prompts: there is no class {name!r}; allowed are {names}")
        if name in written:
            raise ConfigError(f"concept_prompts: class {name!r} is listed twice: list it once")
        if not prompts or (SKIP in prompts and len(prompts) > 1):
            raise ConfigError(
                f"concept_prompts: class {name!r} has the prompts {listed!r}: {_FORM}, where {SKIP}"
                " skips a class"
            )
        written[name] = () if prompts == [SKIP] else tuple(prompts)
    return written


def _own_prompt(name: str) -> tuple[str, ...]:
    prompt = " ".join(name.replace("_", " ").replace("-", " ").split())
    if not any(letter.isalpha() for letter in prompt) or _is_number_of_class(prompt):
        raise ConfigError(
            f"class {name!r} has no name to prompt a network with: give it one in"
            f' masks.concept_prompts, such as "{name}: car"'
        )
    return (prompt,)


def _is_number_of_class(prompt: str) -> bool:
    """Whether a name only counts, such as class 3 or label 12."""
    word = prompt.lower().rstrip("0123456789").strip()
    return prompt[-1:].isdigit() and word in ("class", "label", "group", "output")
