"""Checks of the search space against the settings that it names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_origin

from sfss_ray.config.consistency import check_neighbour_space, check_stage
from sfss_ray.config.knobs import list_knobs
from sfss_ray.config.space import Dimension, parse_space
from sfss_ray.config.tree import Config, override
from sfss_ray.errors import ConfigError

_MAX_CHECKED = 1000
"""Whole numbers of a range that are checked; a check takes 30 microseconds."""


def check_space(config: Config, masks_have_embeddings: bool = False) -> None:
    """Check that the training accepts both ends of a range, its whole numbers, and every choice.

    Of a long range of whole numbers a sample is checked.

    Args:
        config: The whole config.
        masks_have_embeddings: Of the masks that all trials share.

    Raises:
        ConfigError: a setting does not exist, is not a number but has a range, or refuses a value.
    """
    types = {knob.name: knob.type for knob in list_knobs()}
    for dimension in parse_space(config.tune.entries):
        if dimension.name not in types:
            override(config, {dimension.name: None})  # names the known ones
        knob = types[dimension.name]
        if get_origin(knob.plain) is tuple:
            raise ConfigError(
                f"tune.space has {dimension.name!r}, which is a list: a search varies numbers, flags and"
                " names"
            )
        if not dimension.choices and knob.plain not in (int, float):
            values = ", ".join(knob.choices) or "true, false"
            raise ConfigError(
                f"tune.space has a range of {dimension.name!r}: list its values instead, such as"
                f" {dimension.name}={values.replace(' ', '')}"
            )
        is_whole_range = knob.plain is int and not dimension.choices
        if is_whole_range and not all(end.is_integer() for end in dimension.ends):
            raise ConfigError(f"tune.space has {dimension.name!r}: its values are whole numbers")
        for value in _checked_numbers(dimension) if is_whole_range else dimension.ends:
            changed = override(config, {dimension.name: value})
            check_stage(changed.train, changed.compute)
            check_neighbour_space(changed.train.loss, masks_have_embeddings)


def _checked_numbers(dimension: Dimension) -> Sequence[int]:
    """Return all whole numbers of a short range, or a sample of a long one with both ends.

    Half of a sample are the first numbers without a gap: they have every remainder of a division, such
    as that of a batch by workers. The others are spread over the range.
    """
    low, high = int(dimension.low), int(dimension.high)
    if high - low < _MAX_CHECKED:
        return range(low, high + 1)
    half = _MAX_CHECKED // 2
    return [*range(low, low + half), *(low + (high - low) * i // half for i in range(1, half + 1))]


def planned_trials(config: Config) -> int:
    """Return how many trials a search runs: `tune.num_trials`, or all points of a smaller space."""
    points = 1
    for dimension in parse_space(config.tune.entries):
        if dimension.choices:
            points *= len(dimension.choices)
        elif is_whole_number(dimension):
            points *= int(dimension.high) - int(dimension.low) + 1
        else:
            return config.tune.num_trials
    return min(config.tune.num_trials, points)


def is_whole_number(dimension: Dimension) -> bool:
    """Return whether a dimension's setting takes whole numbers alone."""
    types = {knob.name: knob.type for knob in list_knobs()}
    return types[dimension.name].plain is int
