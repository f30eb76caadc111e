"""The config tree: one way to change a value, and no value out of its range."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
from pathlib import Path

import pytest

from sfss_ray import config as module
from sfss_ray.config import Config, differences, flatten, load_config, override
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
    "tune.ema_gap_range": [0.001, 0.01],
    "compute.address": "10.0.0.1:6379",
}
OUT_OF_RANGE = {
    "seed": [-1, 2**31],
    "source_weights": ["teacher"],
    "masks.regions": ["sam2"],
    "masks.points_per_side": [0, 257],
    "masks.pred_iou_thresh": [-0.1, 1.1],
    "masks.stability_score_offset": [0.0],
    "masks.crop_n_layers": [-1, 5],
    "masks.crop_n_points_downscale_factor": [0],
    "masks.crop_overlap_ratio": [-0.1, 1.1],
    "masks.crop_nms_thresh": [-0.1, 1.1],
    "masks.felzenszwalb_scale": [0.0],
    "masks.images_per_shard": [0],
    "pretrain.num_steps": [0],
    "pretrain.precision": ["fp16"],
    "train.num_steps": [0],
    "train.batch_size": [0],
    "train.ema_momentum": [-0.1, 1.1],
    "train.batch_norm": ["off"],
    "train.optim.learning_rate": [0.0, float("nan"), float("inf")],
    "train.optim.optimizer": ["adam"],
    "train.optim.warmup_share": [1.5],
    "train.optim.warmup_steps": [-1],
    "train.augment.crop_size": [[31, 64], [64, 0]],
    "train.augment.scale_range": [[0.0, 1.0], [2.0, 1.0], [float("nan"), 1.0]],
    "train.augment.hue": [0.6],
    "train.pairs.cell_share": [0.5, 1.1],
    "train.pairs.min_cells": [0],
    "train.loss.temperature": [0, 0.0, -0.1, 101.0, float("nan")],
    "train.loss.contrast_weight": [-1.0],
    "train.loss.ramp": [[0.5, 0.2], [-0.1, 0.2], [0.5, 1.2]],
    "train.loss.embedding_dim": [1],
    "evaluation.max_size": [31],
    "evaluation.held_out_share": [0.6],
    "evaluation.pictures": [101],
    "tune.num_trials": [0],
    "tune.temperature_range": [[0.0, 1.0], [0.5, 0.1], [0.1, float("inf")]],
    "tune.ema_gap_range": [[0.1, 1.5]],
    "tune.reduction_factor": [1],
    "tune.score": ["accuracy"],
    "compute.device": ["tpu"],
    "compute.num_workers": [0],
    "compute.cpus_per_worker": [0.0],
    "compute.max_failures": [-2],
}
WRONG_TYPE = {
    "seed": ["1", 1.0, True, None],
    "train.num_steps": [10.0, "10"],
    "train.loss.temperature": ["0.1", None, False, [0.1]],
    "train.augment.flip": [1, "yes"],
    "train.augment.crop_size": [64, [64], [64, 64, 64], [64.0, 64], ["64", "64"], "64"],
    "train.augment.scale_range": [["a", "b"], [None, 1.0]],
    "train.loss.ramp": [["0", "1"], [True, True]],
    "tune.temperature_range": [["small", "large"]],
    "masks.regions": [1, None],
    "masks.box_nms_thresh": ["0.7", True],
    "train.loss": [{"temperature": 0.1}],
}


def cases(table: dict) -> list[tuple]:
    return [(name, value) for name, values in table.items() for value in values]


def test_override_changes_what_is_named_and_nothing_else():
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
    with pytest.raises(ConfigError, match=f"^{name.rpartition('.')[2]} is ") as refused:
        override(Config(), {name: value})
    assert "allowed is" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("name", "value"), cases(WRONG_TYPE))
def test_values_of_another_type_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"^{name} is .*: allowed is a "):
        override(Config(), {name: value})


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (module.TrainConfig, {"num_steps": 1e3}),
        (module.TrainConfig, {"num_steps": True}),
        (module.LossConfig, {"temperature": "0.1"}),
        (module.LossConfig, {"ramp": ("a", "b")}),
        (module.LossConfig, {"ramp": (0.1,)}),
        (module.AugmentConfig, {"crop_size": (64.5, 64)}),
        (module.AugmentConfig, {"crop_size": 64}),
        (module.TuneConfig, {"temperature_range": ("a", "b")}),
    ],
)
def test_direct_construction_refuses_the_same(make, values):
    with pytest.raises(ConfigError, match=f"^{next(iter(values))} is "):
        make(**values)


def test_every_number_has_its_range_checked():
    """-1e9 is allowed nowhere."""
    for name, value in flatten(Config()).items():
        if type(value) in (int, float):
            with pytest.raises(ConfigError, match="allowed is"):
                override(Config(), {name: type(value)(-1e9)})


@pytest.mark.parametrize("made_of", CLASSES)
def test_the_tree_is_frozen(made_of):
    made = made_of()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(made)[0].name, 1)
    assert hash(made) == hash(made_of())


@pytest.mark.parametrize("documented", CLASSES)
def test_every_knob_has_its_line_below(documented):
    """A part of the tree is described by its own class instead."""
    parts = {part.__name__ for part in CLASSES}
    (definition,) = ast.parse(inspect.getsource(documented)).body
    assert isinstance(definition, ast.ClassDef)
    assert ast.get_docstring(definition)
    knobs = 0
    for statement, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign):
            knobs += 1
            if ast.unparse(statement.annotation) in parts:
                continue
            text = getattr(getattr(below, "value", None), "value", None)
            assert isinstance(text, str), f"{ast.unparse(statement)} has no line below it"
            assert text.strip().endswith((".", ")")), text
    assert knobs == len(dataclasses.fields(documented))


def test_load_config_lays_a_file_over_a_config(tmp_path: Path):
    path = tmp_path / "best.json"
    path.write_text(json.dumps({"train.loss.temperature": 0.3}))
    assert load_config(path) == override(Config(), {"train.loss.temperature": 0.3})
    loaded = load_config(path, override(Config(), {"seed": 7, "train.loss.temperature": 0.5}))
    assert (loaded.seed, loaded.train.loss.temperature) == (7, 0.3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot read config"),
        (b'{"seed": 1', "cannot read config"),
        (b"\xff\xfe\x00", "cannot read config"),
        (b"[1]", "is a JSON list: an object is needed"),
        (b'{"train": {"num_steps": 1}}', "train is "),
        (b'{"train.loss.temperature": NaN}', "temperature is nan"),
    ],
)
def test_bad_files_are_refused_in_one_line(content, reason, tmp_path: Path):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as refused:
        load_config(path)
    assert "\n" not in str(refused.value)


def test_missing_files_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        load_config(tmp_path / "nowhere.json")


def test_differences_name_what_changed():
    old, new = {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 4, "d": 5}
    assert differences(old, new) == ["b: 2 -> 4", "c: 3 -> absent", "d: absent -> 5"]
    assert differences(old, dict(old)) == []
