"""The three hyperparameters: ranges, values and the starting point."""

import pytest

from sfss_ray.config import Config, flatten, override
from sfss_ray.tune.search_space import (
    CONTRAST_WEIGHT,
    EMA_GAP,
    EMA_MOMENTUM,
    TEMPERATURE,
    knob_values,
    search_ranges,
    start_point,
)


def test_a_point_sets_values_of_the_config():
    values = knob_values({TEMPERATURE: 0.2, CONTRAST_WEIGHT: 0.5, EMA_GAP: 0.01})
    assert values == {TEMPERATURE: 0.2, CONTRAST_WEIGHT: 0.5, EMA_MOMENTUM: 0.99}
    config = flatten(override(Config(), values))
    assert {name: config[name] for name in values} == values


def test_the_search_starts_from_the_configs_own_values():
    own = {TEMPERATURE: 0.3, CONTRAST_WEIGHT: 0.4, EMA_MOMENTUM: 0.995}
    assert knob_values(start_point(override(Config(), own))) == pytest.approx(own)


def test_values_outside_the_ranges_are_clamped():
    config = override(Config(), {TEMPERATURE: 50.0, CONTRAST_WEIGHT: 0.0, EMA_MOMENTUM: 1.0})
    point, ranges = start_point(config), search_ranges(config.tune)
    assert point[TEMPERATURE] == ranges[TEMPERATURE][1]
    assert point[CONTRAST_WEIGHT] == ranges[CONTRAST_WEIGHT][0]
    assert point[EMA_GAP] == ranges[EMA_GAP][0]


def test_ranges_are_those_of_the_config():
    tune = override(Config(), {"tune.ema_gap_range": [1e-3, 0.5]}).tune
    assert search_ranges(tune) == {
        TEMPERATURE: tune.temperature_range,
        CONTRAST_WEIGHT: tune.contrast_weight_range,
        EMA_GAP: (1e-3, 0.5),
    }
