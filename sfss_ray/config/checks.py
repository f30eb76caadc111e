"""Ranges of knobs: each check raises ConfigError with the value, what is allowed, and what to do."""

from __future__ import annotations

import math
from typing import Any

from sfss_ray.errors import ConfigError


def require(owner: Any, name: str, low: float, high: float = math.inf, *, above: bool = False):
    """Raise ConfigError unless low <= value <= high (low < value with `above`), or None where it may."""
    if may_be_none(owner, name) and getattr(owner, name) is None:
        return
    value = getattr(owner, name)
    whole = owner.__dataclass_fields__[name].type == "int"  # annotations are kept as text
    if is_number(value, whole) and (value > low if above else value >= low) and value <= high:
        return
    bracket = "(" if above else "["
    limit = "inf)" if math.isinf(high) else f"{high:g}]"
    kind = "a whole number in " if whole else ""
    raise ConfigError(
        f"{name} is {value!r}: allowed is {kind}{bracket}{low:g}, {limit}; choose a value there"
    )


def may_be_none(owner: Any, name: str) -> bool:
    """Whether None is a value of this knob: "what suits the rest of the config"."""
    return owner.__dataclass_fields__[name].type.endswith("| None")


def is_number(value: object, whole: bool = False) -> bool:
    kinds = int if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)


def are_numbers(pair: Any, whole: bool = False) -> bool:
    """Whether it is a pair of numbers."""
    is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
    return is_pair and all(is_number(value, whole) for value in pair)


def require_zooms(owner: object, name: str):
    zooms = getattr(owner, name)
    if not zooms or not all(is_number(zoom) and 0.1 <= zoom <= 4 for zoom in zooms):
        raise ConfigError(f"{name} is {zooms!r}: allowed are zooms of .1 to 4, one or more")


def require_one_of(owner: object, name: str, allowed: tuple[str, ...]):
    value = getattr(owner, name)
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}: allowed is one of {', '.join(allowed)}")


def require_range(owner: object, name: str, low: float, high: float = math.inf):
    pair = getattr(owner, name)
    if are_numbers(pair) and low < pair[0] <= pair[1] <= high:
        return
    raise ConfigError(
        f"{name} is {pair!r}: allowed is a pair (smallest, largest) with {low:g} < smallest <= largest"
        f" <= {high:g}"
    )
