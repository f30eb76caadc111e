"""Points of a search: coordinates, config values and the starting point."""

import pytest

from sfss_ray.config import Config, flatten, override
from sfss_ray.config.space import Dimension, parse_space
from sfss_ray.tune.search_space import coordinate, coordinate_range, knob_values, start_point

TEMPERATURE, CONTRAST_WEIGHT = "train.loss.temperature", "train.loss.contrast_weight"
EMA_MOMENTUM, EMA_GAP = "train.ema_momentum", "gap.train.ema_momentum"


def config_of(*space: str, **values) -> Config:
    return override(Config(), {"tune.space": list(space)} | values)


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
    assert start_point(config) == {TEMPERATURE: 0.7, CONTRAST_WEIGHT: 0.01, EMA_GAP: 1e-4}


def test_whole_numbers_stay_whole_numbers():
    space = ("train.batch_size=8..16", "train.pairs.negatives=log:1024..2048")
    point = start_point(config_of(*space, **{"train.batch_size": 4}))
    assert point == {"train.batch_size": 8, "train.pairs.negatives": 1024}
    assert {type(value) for value in point.values()} == {int}


def test_a_range_of_a_setting_that_is_not_set_starts_at_its_low_end():
    point = start_point(config_of("train.augment.max_size=256..512"))
    assert point == {"train.augment.max_size": 256}
    point = start_point(
        config_of("train.augment.max_size=256..512", **{"train.augment.max_size": 300})
    )
    assert point == {"train.augment.max_size": 300}


def test_a_choice_starts_from_the_own_value_or_the_first():
    space = ("train.batch_norm=frozen,auto", "train.loss.teacher_flip=true,false")
    assert start_point(config_of(*space)) == {
        "train.batch_norm": "auto",
        "train.loss.teacher_flip": False,
    }
    point = start_point(config_of(*space, **{"train.batch_norm": "adapt"}))
    assert point["train.batch_norm"] == "frozen"


def test_a_gap_is_searched_as_the_distance_to_one():
    dimension = Dimension(EMA_MOMENTUM, "gap", 0.99, 0.9999)
    assert coordinate(dimension) == EMA_GAP
    assert coordinate_range(dimension) == (1e-4, 0.01)
    (linear,) = parse_space(["train.loss.vote_weight=0.2..1"])
    assert coordinate(linear) == "train.loss.vote_weight"
    assert coordinate_range(linear) == (0.2, 1.0)
