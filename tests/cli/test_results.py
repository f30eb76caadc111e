"""Every kind of result becomes lines for people and an exit code."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
from report_samples import adapt_report

from sfss_ray.cli.results import describe, exit_code
from sfss_ray.report.report_record import WORSE, Verdict


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


def test_a_run_ends_with_its_verdict():
    record = adapt_report()
    paths = {"student_path": "student.pt", "report_html": "report.html"}
    former = SimpleNamespace(report=record, **paths)
    assert describe(former)[-1] == "report: report.html"
    verdict = Verdict(WORSE, "With labels, mIoU falls.")
    judged = SimpleNamespace(report=replace(record, verdict=verdict), **paths)
    assert describe(judged) == [
        *describe(former),
        "verdict: worse: keep the source model. With labels, mIoU falls.",
    ]
