"""How reports write numbers, changes and missing values."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import numpy as np

MISSING = "-"


def is_number(value: Any) -> TypeGuard[float]:
    """Return True for a finite int or float (numpy too), False for None, NaN, Inf, bool and text."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        return False
    return math.isfinite(float(value))


def format_number(value: Any, digits: int = 1) -> str:
    """Write a value with fixed decimals, or "-" when it is missing."""
    return f"{float(value):.{digits}f}" if is_number(value) else MISSING


def format_knob(value: Any) -> str:
    """Write a setting: a number with four significant digits, a flag or a name as it is.

    A momentum close to 1 keeps two digits of its gap to 1.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    if not is_number(value):
        return MISSING
    if 0.9 < value < 1:
        decimals = max(5, 1 - math.floor(math.log10(1 - value) + 1e-6))
        return f"{value:.{decimals}f}"
    return f"{value:.4g}"


def format_change(change: float | None, digits: int = 1) -> str:
    """Write a change with its sign, "+13.1", "-0.4", "0.0", or "-" when it is missing."""
    if change is None:
        return MISSING
    rounded = round(change, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def difference(before: Any, after: Any) -> float | None:
    """Return after - before, or None when one of them is missing."""
    return float(after) - float(before) if is_number(before) and is_number(after) else None
