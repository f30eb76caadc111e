"""Lines that list cases: the number, the first five, and how many more."""

from __future__ import annotations

import pytest

from sfss_ray.inspection.report_lines import MAX_LISTED, case_lines


@pytest.mark.parametrize(
    ("cases", "lines"),
    [
        ([], ["broken files: none"]),
        (["a"], ["broken files: 1", "  a"]),
        (list("abcde"), ["broken files: 5", *(f"  {case}" for case in "abcde")]),
        (list("abcdefg"), ["broken files: 7", *(f"  {c}" for c in "abcde"), "  and 2 more"]),
    ],
)
def test_the_first_cases_are_listed(cases, lines):
    assert MAX_LISTED == 5
    assert case_lines("broken files", cases) == lines
