"""Ranges are stated in types: what they allow, how they say it, and conversion by type."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from sfss_ray import config as module
from sfss_ray.config import Config, flatten, override
from sfss_ray.config.ranges import (
    Common,
    CountRange,
    Counts,
    Interval,
    Range,
    Research,
    Sizes,
    Zooms,
    check_knobs,
    coerce,
    count_range,
    is_number,
    knob_types,
    read_type,
)
from sfss_ray.errors import ConfigError


@dataclass(frozen=True)
class Example:
    """One knob of each kind."""

    share: Annotated[float, Range(0, 1), Common] = 0.5
    positive: Annotated[float, Range(0, above=True)] = 1.0
    count: Annotated[int, Range(-1, 3), Research] = 0
    threshold: Annotated[float, Range(0, 1)] | None = None
    mode: Literal["whole", "slide"] = "whole"
    flip: bool = False
    address: str = "auto"
    size: Annotated[tuple[int, int], Sizes("height", "width", at_least=32)] = (64, 64)
    crop: Annotated[tuple[int, int], Sizes("height", "width", at_least=32, at_most=99)] = (64, 64)
    ramp: Annotated[tuple[float, float], Interval(0, 1, names=("start", "end"))] = (0.0, 1.0)
    scale: Annotated[tuple[float, float], Interval(0, above=True)] = (0.5, 2.0)
    zooms: Annotated[tuple[float, ...], Zooms(0.1, 4)] = (1.0,)
    workers: Annotated[int | str, Counts(1)] = 1
    actors: Annotated[int | str, Counts(0)] = 0

    def __post_init__(self):
        check_knobs(self)


@pytest.mark.parametrize(
    "values",
    [
        {"share": 0, "positive": 1e-9, "count": -1},
        {"share": 1, "count": 3, "threshold": 0.0},
        {"size": (32, 4000), "crop": (32, 99), "ramp": (0.3, 0.3), "scale": (1e-6, 1e6)},
        {"zooms": (0.1, 4.0, 1.0), "mode": "slide", "flip": True, "address": ""},
        {"workers": 1, "actors": 0},
        {"workers": "1-1", "actors": "1-8"},
    ],
)
def test_the_ends_of_a_range_are_allowed(values):
    for name, value in values.items():
        assert getattr(Example(**values), name) == value


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("share", -0.01, "[0, 1]; choose a value there"),
        ("share", 1.01, "[0, 1]; choose a value there"),
        ("share", None, "[0, 1]; choose a value there"),
        ("share", math.nan, "[0, 1]; choose a value there"),
        ("positive", 0.0, "(0, inf); choose a value there"),
        ("positive", math.inf, "(0, inf); choose a value there"),
        ("count", 4, "a whole number in [-1, 3]; choose a value there"),
        ("count", 1.0, "a whole number in [-1, 3]; choose a value there"),
        ("count", True, "a whole number in [-1, 3]; choose a value there"),
        ("threshold", 1.5, "[0, 1]; choose a value there"),
        ("mode", "half", "one of whole, slide"),
        ("mode", None, "one of whole, slide"),
        ("flip", 1, "a bool"),
        ("address", 7, "a str"),
        ("size", (31, 64), "(height, width), each 32 or more pixels"),
        ("size", (64.0, 64), "(height, width), each 32 or more pixels"),
        ("size", (64, 64, 64), "(height, width), each 32 or more pixels"),
        ("size", "64", "(height, width), each 32 or more pixels"),
        ("crop", (31, 64), "(height, width), each 32 to 99 pixels"),
        ("crop", (64, 100), "(height, width), each 32 to 99 pixels"),
        ("ramp", (0.5, 0.2), "a pair (start, end) with 0 <= start <= end <= 1"),
        ("ramp", (0.5, 1.2), "a pair (start, end) with 0 <= start <= end <= 1"),
        ("scale", (0.0, 1.0), "a pair (smallest, largest) with 0 < smallest <= largest <= inf"),
        ("scale", (True, 1.0), "a pair (smallest, largest) with 0 < smallest <= largest <= inf"),
        ("zooms", (), "one or more zooms in [0.1, 4]"),
        ("zooms", (1.0, 4.5), "one or more zooms in [0.1, 4]"),
        ("workers", 0, "a whole number in [1, inf), or a range MIN-MAX such as 2-8"),
        ("workers", "2", "a whole number in [1, inf), or a range MIN-MAX such as 2-8"),
        ("workers", "3-2", "a whole number in [1, inf), or a range MIN-MAX such as 2-8"),
        ("workers", "1-2-3", "a whole number in [1, inf), or a range MIN-MAX such as 2-8"),
        ("workers", True, "a whole number in [1, inf), or a range MIN-MAX such as 2-8"),
        ("actors", -1, "a whole number in [0, inf), or a range MIN-MAX such as 2-8"),
        ("actors", "0-2", "a whole number in [0, inf), or a range MIN-MAX such as 2-8"),
        ("actors", 1.0, "a whole number in [0, inf), or a range MIN-MAX such as 2-8"),
    ],
)
def test_values_out_of_range_are_refused_with_what_is_allowed(name, value, allowed):
    with pytest.raises(ConfigError) as refused:
        Example(**{name: value})
    assert str(refused.value) == f"{name} is {value!r}: allowed is {allowed}"


def test_annotations_are_taken_apart():
    types = knob_types(Example)
    assert list(types) == [knob.name for knob in dataclasses.fields(Example)]
    assert [types[name].level for name in ("share", "count", "mode")] == [
        "common",
        "research",
        "advanced",
    ]
    assert types["threshold"].optional
    assert not types["share"].optional
    assert types["mode"].choices == ("whole", "slide")
    assert (types["size"].number, types["zooms"].number) == (int, float)


@pytest.mark.parametrize(
    "hint",
    [
        Annotated[float, Range(0, 1)] | None,
        Annotated[float | None, Range(0, 1)],
        Annotated[Annotated[float, Range(0, 1)] | None, Common],
    ],
)
def test_none_may_stand_inside_and_outside_of_a_range(hint):
    knob_type = read_type(hint)
    assert (knob_type.plain, knob_type.optional) == (float, True)
    assert knob_type.allows(None)
    assert knob_type.allows(0.5)
    assert not knob_type.allows(2)


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (float, 1, 1.0),
        (float | None, 2, 2.0),
        (float | None, None, None),
        (tuple[float, float], [1, 2], (1.0, 2.0)),
        (tuple[int, int], [1, 2], (1, 2)),
        (tuple[float, ...], [1], (1.0,)),
        (bool, True, True),
        (Literal["a", "b"], "b", "b"),
        (Annotated[int | str, Counts(1)], 3, 3),
        (Annotated[int | str, Counts(1)], "2-8", "2-8"),
    ],
)
def test_values_are_converted_by_the_type(hint, value, expected):
    """Not by the value that the knob has at the moment, which may be None."""
    converted = coerce(value, read_type(hint), "x")
    assert converted == expected
    assert type(converted) is type(expected)
    if isinstance(expected, tuple):
        assert [type(entry) for entry in converted] == [type(entry) for entry in expected]


@pytest.mark.parametrize(
    ("hint", "value", "kind"),
    [
        (int, 1.0, "int"),
        (int, True, "int"),
        (float, "1", "float"),
        (bool, 1, "bool"),
        (Literal["a", "b"], 1, "one of a, b"),
        (int | None, 1.5, "int"),
        (Annotated[int | str, Counts(1)], 1.5, "whole number, or a range MIN-MAX such as 2-8"),
        (Annotated[int | str, Counts(1)], True, "whole number, or a range MIN-MAX such as 2-8"),
    ],
)
def test_values_of_another_type_are_not_converted(hint, value, kind):
    with pytest.raises(ConfigError, match=f"^part.x is .*: allowed is (a )?{kind}$"):
        coerce(value, read_type(hint), "part.x")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, CountRange(3, 3)), ("2-8", CountRange(2, 8)), ("10-10", CountRange(10, 10))],
)
def test_counts_are_read_as_a_range(value, expected):
    counts = count_range(value)
    assert counts == expected
    assert counts.is_fixed == (expected.smallest == expected.largest)


@pytest.mark.parametrize("text", ["", "8", "0-3", "4-2", "-1-2", "2-", "2 - 8", "²-3"])
def test_other_text_is_no_range_of_counts(text):
    with pytest.raises(ValueError, match="is no range of counts: give MIN-MAX, such as 2-8"):
        count_range(text)


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (module.TrainConfig, {"num_steps": 1e3}),
        (module.TrainConfig, {"num_steps": True}),
        (module.LossConfig, {"temperature": "0.1"}),
        (module.LossConfig, {"ramp": ("a", "b")}),
        (module.LossConfig, {"ramp": (0.1,)}),
        (module.AugmentConfig, {"crop_size": (64.5, 64)}),
        (module.AugmentConfig, {"crop_size": 64}),
        (module.AugmentConfig, {"max_size": 31}),
        (module.TuneConfig, {"space": "a=0..1"}),
        (module.TuneConfig, {"space": (1, 2)}),
        (module.Config, {"train": {"num_steps": 1}}),
    ],
)
def test_direct_construction_refuses_the_same(make, values):
    with pytest.raises(ConfigError, match=f"^{next(iter(values))} is "):
        make(**values)


def test_every_number_has_its_range_checked():
    """-1e9 is allowed nowhere."""
    for name, value in flatten(Config()).items():
        if type(value) in (int, float):
            with pytest.raises(ConfigError, match="allowed is"):
                override(Config(), {name: type(value)(-1e9)})


def test_every_number_states_its_range_in_its_type():
    classes = [member for member in vars(module).values() if dataclasses.is_dataclass(member)]
    for config_class in classes:
        for name, knob_type in knob_types(config_class).items():
            has_range = knob_type.constraint is not None
            assert has_range or knob_type.number not in (int, float), f"{config_class} {name}"


def test_numbers_beyond_the_largest_float_are_none():
    assert not is_number(10**400, int)
    assert not is_number(10**400, float)
    assert is_number(10**300, float)
    with pytest.raises(ConfigError, match=r"^part.x is 1000+\.\.\.: allowed is a float$"):
        coerce(10**400, read_type(float), "part.x")
