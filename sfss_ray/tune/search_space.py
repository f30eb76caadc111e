"""The points of a search: their ranges, their config values, and the starting point.

All settings are searched jointly, because temperature and contrast weight are coupled.
"""

from __future__ import annotations

from typing import Any

from sfss_ray.config import Config, flatten
from sfss_ray.config.space import Dimension, parse_space
from sfss_ray.config.space_check import is_whole_number

Point = dict[str, Any]
"""A point of the search space by coordinate. A coordinate is a setting's dotted name, or `gap.NAME` for
1 - value, which is searched where the distance to 1 spans orders of magnitude."""


def coordinate(dimension: Dimension) -> str:
    """Return the name of a dimension in a point."""
    return f"gap.{dimension.name}" if dimension.scale == "gap" else dimension.name


def coordinate_range(dimension: Dimension) -> tuple[float, float]:
    """Return the ends of a range in the coordinate that is sampled."""
    if dimension.scale == "gap":
        # Rounded, because 1 - 0.9999 is not 1e-4.
        return round(1 - dimension.high, 12), round(1 - dimension.low, 12)
    return dimension.low, dimension.high


def knob_values(point: Point) -> dict[str, Any]:
    """Return a point as config values by dotted name."""
    return {
        name.removeprefix("gap."): 1.0 - value if name.startswith("gap.") else value
        for name, value in point.items()
    }


def start_point(config: Config) -> Point:
    """Return the config's own values, clamped to the ranges.

    Choices without the own value start at the first, and ranges of a setting that is not set at LOW.
    """
    values = flatten(config)
    return {
        coordinate(dimension): _start(dimension, values[dimension.name])
        for dimension in parse_space(config.tune.entries)
    }


def _start(dimension: Dimension, value: Any) -> Any:
    if dimension.choices:
        return value if value in dimension.choices else dimension.choices[0]
    value = dimension.low if value is None else value
    low, high = coordinate_range(dimension)
    clamped = min(max(1.0 - value if dimension.scale == "gap" else value, low), high)
    return int(clamped) if is_whole_number(dimension) else clamped
