"""The config tree: one way to change a value, and every value in its range."""

from __future__ import annotations

import dataclasses
import json

import pytest
from knob_cases import assert_refused, cases

from sfss_ray import config as module
from sfss_ray.config import Config, differences, flatten, override
from sfss_ray.errors import ConfigError

CLASSES = [member for member in vars(module).values() if dataclasses.is_dataclass(member)]
assert module.Config in CLASSES
assert len(CLASSES) > 8
CHANGED = {
    "seed": 3,
    "masks.regions": "felzenszwalb",
    "masks.points_per_side": 8,
    "masks.box_nms_thresh": 0.65,
    "train.loss.temperature": 0.2,
    "train.loss.ramp": [0.0, 0.5],
    "train.augment.crop_size": [64, 96],
    "train.augment.flip": False,
    "tune.space": ["train.ema_momentum=gap:0.99..0.999"],
    "compute.address": "10.0.0.1:6379",
}
OUT_OF_RANGE = {
    "seed": [-1, 2**31],
    "source_weights": ["teacher"],
}
WRONG_TYPE = {
    "seed": ["1", 1.0, True, None],
    "train.num_steps": [10.0, "10"],
    "train.loss.temperature": ["0.1", None, False, [0.1]],
    "train.augment.flip": [1, "yes"],
    "train.augment.crop_size": [64, [64], [64, 64, 64], [64.0, 64], ["64", "64"], "64"],
    "train.augment.scale_range": [["a", "b"], [None, 1.0]],
    "train.loss.ramp": [["0", "1"], [True, True]],
    "tune.space": ["train.ema_momentum=0.9..1", [1]],
    "masks.regions": [1, None],
    "masks.box_nms_thresh": ["0.7", True],
    "train.loss": [{"temperature": 0.1}],
}


def test_override_changes_the_named_knobs_and_no_others():
    changed = override(Config(), CHANGED)
    before, after = flatten(Config()), flatten(changed)
    assert {name for name in before if before[name] != after[name]} == set(CHANGED)
    assert {name: after[name] for name in CHANGED} == CHANGED
    assert changed.train.augment.crop_size == (64, 96)


def test_flatten_and_override_are_inverse():
    changed = override(Config(), CHANGED)
    assert override(Config(), flatten(changed)) == changed
    assert override(Config(), json.loads(json.dumps(flatten(changed)))) == changed


def test_a_threshold_may_be_left_to_the_network_again():
    changed = override(Config(), {"masks.box_nms_thresh": 1})
    assert changed.masks.box_nms_thresh == 1.0
    assert override(changed, {"masks.box_nms_thresh": None}) == Config()


def test_values_of_a_group_are_checked_together():
    """A stride may be named before the window that allows it, and be too large for the old one."""
    smaller = {"evaluation.window": [256, 256], "evaluation.stride": [200, 200]}
    larger = {"evaluation.stride": [600, 600], "evaluation.window": [700, 700]}
    assert override(Config(), smaller).evaluation.stride == (200, 200)
    assert override(Config(), larger).evaluation.window == (700, 700)
    with pytest.raises(ConfigError, match=r"stride is \(600, 600\): allowed is .* window's \(512"):
        override(Config(), {"evaluation.stride": [600, 600]})


def test_a_knob_that_is_none_takes_its_own_type():
    changed = override(Config(), {"train.augment.max_size": 1024, "masks.pred_iou_thresh": 1})
    assert type(changed.train.augment.max_size) is int
    assert type(changed.masks.pred_iou_thresh) is float
    with pytest.raises(ConfigError, match=r"^train.augment.max_size is 1024.0: allowed is a int"):
        override(Config(), {"train.augment.max_size": 1024.0})


def test_whole_numbers_may_stand_for_fractions():
    changed = override(Config(), {"train.loss.temperature": 1, "train.augment.scale_range": [1, 2]})
    assert changed.train.loss.temperature == 1.0
    assert all(isinstance(v, float) for v in changed.train.augment.scale_range)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "sed",
            "unknown setting 'sed': the config knows seed, labels_format, labels_classes,",
        ),
        ("train.loss.tau", "unknown setting 'train.loss.tau': train.loss knows temperature, "),
        ("train.los.temperature", "'train.los.temperature': train knows num_steps, "),
        ("seed.x", "unknown setting 'seed.x': seed knows no parts"),
        ("train.", "unknown setting 'train.': train knows num_steps, "),
        ("", "unknown setting '': the config knows seed, "),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(name, message):
    with pytest.raises(ConfigError) as refused:
        override(Config(), {name: 1})
    assert message in str(refused.value)


@pytest.mark.parametrize(("name", "value"), cases(OUT_OF_RANGE))
def test_values_out_of_range_are_refused(name, value):
    assert_refused(name, value)


@pytest.mark.parametrize(("name", "value"), cases(WRONG_TYPE))
def test_values_of_another_type_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"^{name} is .*: allowed is (a|one of) "):
        override(Config(), {name: value})


@pytest.mark.parametrize("config_class", CLASSES)
def test_the_tree_is_frozen(config_class):
    config = config_class()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, 1)
    assert hash(config) == hash(config_class())


def test_differences_name_what_changed():
    old, new = {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 4, "d": 5}
    assert differences(old, new) == ["b: 2 -> 4", "c: 3 -> absent", "d: absent -> 5"]
    assert differences(old, dict(old)) == []
