"""The three hyperparameters of a search, their ranges and their starting point.

Temperature and contrast weight are coupled, so all three are searched jointly.
"""

from __future__ import annotations

from sfss_ray.config import Config, TuneConfig

TEMPERATURE = "train.loss.temperature"
CONTRAST_WEIGHT = "train.loss.contrast_weight"
EMA_MOMENTUM = "train.ema_momentum"
EMA_GAP = "ema_gap"
"""1 - momentum, searched in its place because it spans orders of magnitude."""

Point = dict[str, float]
"""A point of the search space: TEMPERATURE, CONTRAST_WEIGHT and EMA_GAP."""


def search_ranges(tune: TuneConfig) -> dict[str, tuple[float, float]]:
    """Return the range of each coordinate. All are sampled log-uniformly."""
    return {
        TEMPERATURE: tune.temperature_range,
        CONTRAST_WEIGHT: tune.contrast_weight_range,
        EMA_GAP: tune.ema_gap_range,
    }


def knob_values(point: Point) -> dict[str, float]:
    """Return a point as config values by dotted name."""
    return {
        TEMPERATURE: point[TEMPERATURE],
        CONTRAST_WEIGHT: point[CONTRAST_WEIGHT],
        EMA_MOMENTUM: 1.0 - point[EMA_GAP],
    }


def start_point(config: Config) -> Point:
    """Return the config's own values, clamped to the search ranges."""
    own_values = {
        TEMPERATURE: config.train.loss.temperature,
        CONTRAST_WEIGHT: config.train.loss.contrast_weight,
        EMA_GAP: 1.0 - config.train.ema_momentum,
    }
    return {
        name: min(max(own_values[name], low), high)
        for name, (low, high) in search_ranges(config.tune).items()
    }
