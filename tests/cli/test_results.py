"""Every kind of result becomes lines for people and an exit code."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from sfss_ray.cli.results import describe, exit_code


@dataclass
class Fields:
    miou: float = 43.216
    images: int = 3
    per_class: dict = field(default_factory=lambda: {"road": 90.126, "sky": 80})
    curve: list = field(default_factory=lambda: [1, 2])


@dataclass
class Lines:
    ready: bool = True
    exit_code: int = 0

    def lines(self) -> list[str]:
        return ["first", "second"]


def test_fields_are_printed_one_a_line_without_the_curve():
    assert describe(Fields()) == [
        "miou: 43.22",
        "images: 3",
        "per_class:",
        "  road: 90.13",
        "  sky: 80",
    ]


def test_a_result_may_have_its_own_lines():
    assert describe(Lines()) == ["first", "second"]


@pytest.mark.parametrize(
    ("result", "code"), [(Lines(), 0), (Lines(exit_code=12), 12), (Lines(ready=False), 1)]
)
def test_a_plan_that_is_not_ready_has_an_exit_code(result, code):
    assert exit_code(result) == code


def test_other_results_end_in_0():
    assert exit_code(Fields()) == 0
