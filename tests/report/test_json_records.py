"""Dataclasses to JSON and back by their type hints."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from sfss_ray.errors import DataError
from sfss_ray.report.json_records import decode, to_plain


@dataclass(frozen=True)
class Wheel:
    size: int
    pressure: float | None = None


@dataclass(frozen=True)
class Car:
    WRITES_NULL: ClassVar[bool] = True

    name: str
    wheels: tuple[Wheel, ...] = ()
    prices: dict[str, float] = field(default_factory=dict)
    notes: Any = None


def test_objects_lists_and_mappings_round_trip():
    car = Car("a", (Wheel(15, 2.5), Wheel(16)), {"new": 3.0}, [1, {"b": None}])
    plain = to_plain(car)
    assert plain["wheels"] == [{"size": 15, "pressure": 2.5}, {"size": 16}]
    assert decode(Car, plain, "car.json") == car


def test_none_is_written_where_the_class_says_so():
    assert to_plain(Car("a"))["notes"] is None
    assert "pressure" not in to_plain(Wheel(1))


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32("nan"), None),
        (float("-inf"), None),
        (np.int64(3), 3),
        (np.array([[1.0, np.inf]]), [[1.0, None]]),
        ((1, (2,)), [1, [2]]),
        ({1: True}, {"1": True}),
        (Path("a/b"), "a/b"),
    ],
)
def test_values_become_strict_json(value, plain):
    assert to_plain(value) == plain


def test_an_int_is_a_float_but_a_bool_is_no_number():
    assert decode(float, 3, "x") == 3
    for kind in (int, float, str):
        with pytest.raises(DataError, match="expected is"):
            decode(kind, True, "x")
    assert decode(bool, True, "x") is True


def test_errors_name_the_path_within_the_file():
    with pytest.raises(DataError, match=r"car\.json .*: wheels\[1\]\.size is missing"):
        decode(Car, {"name": "a", "wheels": [{"size": 1}, {}]}, "car.json")
    with pytest.raises(DataError, match=r"prices\.new is 'x', expected is float"):
        decode(Car, {"name": "a", "prices": {"new": "x"}}, "car.json")
