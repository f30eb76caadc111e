"""Allowed values of knobs, stated once in their types and checked by one routine.

    learning_rate: Annotated[float, Range(0, 10, above=True)] = 2e-4
    window: Annotated[tuple[int, int], Sizes("height", "width", at_least=32)] = (512, 1024)

`check_knobs` validates a config dataclass in its `__post_init__`, and `coerce` converts a JSON or YAML
value to the type of a knob. Both read the same `KnobType`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from sfss_ray.errors import ConfigError

_LONGEST_VALUE = 200
"""Characters of a value that an error shows."""


class Constraint(Protocol):
    """Allowed values of a knob beyond its plain type."""

    def allows(self, value: Any, number: type) -> bool:
        """Return whether a value is allowed; `number` is int or float, of the value or its entries."""
        ...

    def describe(self, number: type) -> str:
        """Return the allowed values in words, for errors and documents."""
        ...


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`; with `above` it must be greater than `low`."""

    low: float
    high: float = math.inf
    above: bool = False

    def allows(self, value: Any, number: type) -> bool:
        if not is_number(value, number):
            return False
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def describe(self, number: type) -> str:
        kind = "a whole number in " if number is int else ""
        limit = "inf)" if math.isinf(self.high) else f"{_exact(self.high)}]"
        bracket = "(" if self.above else "["
        return f"{kind}{bracket}{_exact(self.low)}, {limit}; choose a value there"


def _exact(bound: float) -> str:
    """Return a bound with every digit of a whole number."""
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


@dataclass(frozen=True)
class Interval:
    """A pair of numbers in ascending order within `low` and `high`."""

    low: float
    high: float = math.inf
    above: bool = False
    names: tuple[str, str] = ("smallest", "largest")

    def allows(self, value: Any, number: type) -> bool:
        if not _are_numbers(value, number) or len(value) != 2:
            return False
        first_fits = value[0] > self.low if self.above else value[0] >= self.low
        return first_fits and value[0] <= value[1] <= self.high

    def describe(self, number: type) -> str:
        first, second = self.names
        relation = "<" if self.above else "<="
        return (
            f"a pair ({first}, {second}) with {self.low:g} {relation} {first} <= {second}"
            f" <= {self.high:g}"
        )


@dataclass(frozen=True)
class Sizes:
    """A pair of lengths in pixels, each from `at_least` to `at_most`."""

    first: str
    second: str
    at_least: int
    at_most: int | None = None

    def allows(self, value: Any, number: type) -> bool:
        if not _are_numbers(value, number) or len(value) != 2 or min(value) < self.at_least:
            return False
        return self.at_most is None or max(value) <= self.at_most

    def describe(self, number: type) -> str:
        if self.at_most is not None:
            return f"({self.first}, {self.second}), each {self.at_least} to {self.at_most} pixels"
        return f"({self.first}, {self.second}), each {self.at_least} or more pixels"


@dataclass(frozen=True)
class Zooms:
    """One or more zoom factors from `low` to `high`."""

    low: float
    high: float

    def allows(self, value: Any, number: type) -> bool:
        in_range = _are_numbers(value, number) and len(value) > 0
        return in_range and all(self.low <= zoom <= self.high for zoom in value)

    def describe(self, number: type) -> str:
        return f"one or more zooms in [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class CountRange:
    """Numbers of processes that a run works with, from `smallest` to `largest`, both included."""

    smallest: int
    """Processes without which the run does not start; checks of capacity use it."""
    largest: int
    """Processes that the run uses at most, when the cluster has room for them."""

    @property
    def is_fixed(self) -> bool:
        """Whether only one number is allowed."""
        return self.smallest == self.largest


def count_range(value: int | str) -> CountRange:
    """Return the range that a knob of type `Annotated[int | str, Counts(...)]` states.

    Args:
        value: A number, which is a range of this number alone, or `MIN-MAX`.

    Raises:
        ValueError: the text is not `MIN-MAX` with whole numbers 1 <= MIN <= MAX.
    """
    if isinstance(value, int):
        return CountRange(value, value)
    match = re.fullmatch(r"(\d+)-(\d+)", value, re.ASCII)
    smallest, largest = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= smallest <= largest:
        raise ValueError(f"{value!r} is no range of counts: give MIN-MAX, such as 2-8")
    return CountRange(smallest, largest)


def joined_counts(value: Any) -> Any:
    """Return a pair of counts as text: "2-8" for [2, 8]. Other values are returned as they are."""
    is_pair = _are_numbers(value, int) and len(value) == 2
    return f"{value[0]}-{value[1]}" if is_pair else value


@dataclass(frozen=True)
class Counts:
    """A number of processes of at least `low`, or a range of them as text: `2-8`."""

    low: int

    def allows(self, value: Any, number: type) -> bool:
        if is_number(value, int):
            return value >= self.low
        if not isinstance(value, str):
            return False
        try:
            count_range(value)
        except ValueError:
            return False
        return True

    def describe(self, number: type) -> str:
        return f"a whole number in [{self.low}, inf), or a range MIN-MAX such as 2-8"


@dataclass(frozen=True)
class _Level:
    name: str


Common = _Level("common")
"""Marks a knob that most users set; the short help page lists these alone."""
Research = _Level("research")
"""Marks a knob that only the ablation studies set; help pages leave it out."""

PositiveInt = Annotated[int, Range(1)]
Count = Annotated[int, Range(0)]
Share = Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class KnobType:
    """A knob's annotation, taken apart."""

    plain: Any
    """bool, int, float, str, int | str, a Literal, a tuple of numbers, or a nested config dataclass."""
    optional: bool
    """Whether None is allowed too."""
    constraint: Constraint | None
    level: str
    """common, advanced or research."""

    @property
    def is_group(self) -> bool:
        """Whether this is a nested config dataclass."""
        return dataclasses.is_dataclass(self.plain)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a Literal; empty for any other type."""
        return get_args(self.plain) if get_origin(self.plain) is Literal else ()

    @property
    def number(self) -> type:
        """Type of the value, or of its entries where it is a tuple: int or float for numbers."""
        is_tuple = get_origin(self.plain) is tuple
        return get_args(self.plain)[0] if is_tuple else self.plain

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        if self.constraint is not None:
            return self.constraint.describe(self.number)
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        return f"a {self.plain.__name__}"

    def allows(self, value: Any) -> bool:
        """Return whether a value has this type and lies in its range."""
        if value is None:
            return self.optional
        if self.constraint is not None:
            return self.constraint.allows(value, self.number)
        if self.choices:
            return isinstance(value, str) and value in self.choices
        if self.plain in (int, float):
            return is_number(value, self.plain)
        return isinstance(value, self.plain)


@functools.cache
def knob_types(config_class: type) -> dict[str, KnobType]:
    """Return the type of every knob of a config dataclass, by name, in its order."""
    hints = get_type_hints(config_class, include_extras=True)
    return {knob.name: read_type(hints[knob.name]) for knob in dataclasses.fields(config_class)}


def read_type(hint: Any) -> KnobType:
    """Take an annotation apart: `Annotated`, `X | None`, and a constraint or a level on either."""
    notes: list[Any] = []
    optional = False
    while True:
        if get_origin(hint) is Annotated:
            notes.extend(hint.__metadata__)
            hint = hint.__origin__
        elif get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint):
            (hint,) = (part for part in get_args(hint) if part is not type(None))
            optional = True
        else:
            break
    constraint = next((note for note in notes if hasattr(note, "allows")), None)
    level = next((note.name for note in notes if isinstance(note, _Level)), "advanced")
    return KnobType(hint, optional, constraint, level)


def check_knobs(config: Any) -> None:
    """Check every knob of a config dataclass against its type.

    Raises:
        ConfigError: a value is out of its range or of another type. The message has the knob's name,
            its value and what is allowed.
    """
    for name, knob_type in knob_types(type(config)).items():
        value = getattr(config, name)
        if not knob_type.allows(value):
            raise ConfigError(f"{name} is {_shown(value)}: allowed is {knob_type.allowed}")


def _shown(value: Any) -> str:
    """Return a value for an error, shortened where a file holds a long one."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no whole number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:40]}..."


def coerce(value: Any, knob_type: KnobType, name: str) -> Any:
    """Convert a JSON or YAML value to a knob's type: whole numbers to floats, lists to tuples.

    Raises:
        ConfigError: the value is of another type. Ranges are checked by `check_knobs`.
    """
    if value is None and knob_type.optional:
        return None
    if get_origin(knob_type.plain) is tuple:
        return _coerce_tuple(value, knob_type, name)
    if isinstance(knob_type.constraint, Counts):
        value = joined_counts(value)
    if knob_type.choices and not isinstance(value, str):
        # YAML reads yes, no, on and off without quotes as true and false.
        raise ConfigError(f"{name} is {_shown(value)}: allowed is {knob_type.allowed}")
    if knob_type.is_group and not isinstance(value, knob_type.plain):
        names = [f"{name}.{knob}" for knob in knob_types(knob_type.plain)]
        raise ConfigError(
            f"{name} is {_shown(value)}: allowed is a group of settings, given by name:"
            f" {', '.join(names[:3])}, ..."
        )
    return _coerce_one(value, str if knob_type.choices else knob_type.plain, name)


def _coerce_tuple(value: Any, knob_type: KnobType, name: str) -> tuple[Any, ...]:
    entries = get_args(knob_type.plain)
    has_any_length = Ellipsis in entries
    if not isinstance(value, (tuple, list)) or not (has_any_length or len(value) == len(entries)):
        raise ConfigError(f"{name} is {_shown(value)}: allowed is a tuple, {knob_type.allowed}")
    return tuple(_coerce_one(entry, entries[0], name) for entry in value)


def _coerce_one(value: Any, plain: type, name: str) -> Any:
    if plain is float and isinstance(value, int) and is_number(value, float):
        return float(value)
    if isinstance(value, plain) and (plain is bool or not isinstance(value, bool)):
        return value
    kind = getattr(plain, "__name__", "whole number, or a range MIN-MAX such as 2-8")
    raise ConfigError(f"{name} is {_shown(value)}: allowed is a {kind}")


def is_number(value: object, number: type) -> bool:
    """Return whether a value is a finite int, or with `number` float a finite int or float.

    An int beyond the largest float counts as infinite.
    """
    kinds = int if number is int else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _are_numbers(values: Any, number: type) -> bool:
    is_sequence = isinstance(values, Sequence) and not isinstance(values, str)
    return is_sequence and all(is_number(value, number) for value in values)
