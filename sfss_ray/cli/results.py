"""The result of a verb as lines for people, and as an exit code."""

from __future__ import annotations

from typing import Any

NOT_READY = 1
"""Exit code of a dry run that found something missing."""


def describe(result: Any) -> list[str]:
    """Return the lines that a verb prints at its end: its own lines, a run's table, or its fields."""
    if hasattr(result, "lines"):
        return result.lines()
    report = getattr(result, "report", None)
    if report is not None:
        from sfss_ray.report.tables import results_table

        verdict = [report.verdict.line()] if report.verdict else []
        return [
            results_table(report),
            "",
            f"model: {result.student_path}",
            f"report: {result.report_html}",
            *verdict,
        ]
    fields = {name: value for name, value in vars(result).items() if name != "curve"}
    lines = []
    for name, value in fields.items():
        if isinstance(value, dict):
            lines += [f"{name}:"] + [f"  {key}: {_short(entry)}" for key, entry in value.items()]
        else:
            lines.append(f"{name}: {_short(value)}")
    return lines


def _short(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def exit_code(result: Any) -> int:
    """Return the exit code of a result: its own, 1 for a plan with missing inputs, else 0."""
    if not getattr(result, "ready", True):
        return NOT_READY
    return getattr(result, "exit_code", 0)
