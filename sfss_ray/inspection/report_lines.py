"""Lines that list the cases of a problem in a report."""

from __future__ import annotations

from collections.abc import Sequence

MAX_LISTED = 5


def case_lines(title: str, cases: Sequence[str]) -> list[str]:
    """Return a line with the number of cases, the first cases, and how many more there are."""
    lines = [f"{title}: {len(cases) or 'none'}"] + [f"  {case}" for case in cases[:MAX_LISTED]]
    return [*lines, f"  and {len(cases) - MAX_LISTED} more"] if len(cases) > MAX_LISTED else lines
