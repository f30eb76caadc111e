"""The class that a student loses most of, for the tables of studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FOUND_AT = 10.0
"""IoU in percent from which a class counts as found by the source model."""


def worst_class(
    rows: Sequence[Mapping[str, Any]], source: Mapping[str, Any], classes: Sequence[str]
) -> str:
    """Return the class that keeps the smallest part of its IoU in any row, such as 'fence 35.5 to 19.0'.

    Args:
        rows: Of one network, each with `per_class`, the IoU of each class in percent.
        source: The row of the source model. Classes that it does not find are left out.
        classes: Names of the classes.

    Returns:
        'none' if no class loses anything.
    """
    remaining = [
        (row["per_class"][index] / before, classes[index], before, row["per_class"][index])
        for row in rows
        for index, before in enumerate(source["per_class"])
        if before is not None and before >= FOUND_AT
    ]
    share, name, before, after = min(remaining)
    return f"{name} {before:.1f} to {after:.1f}" if share < 1 else "none"
