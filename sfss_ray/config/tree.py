"""The whole tree, and the one way to change a value in it by name."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from sfss_ray.config.checks import may_be_none, require, require_one_of
from sfss_ray.config.masks import MaskConfig
from sfss_ray.config.running import ComputeConfig, EvaluationConfig, TuneConfig
from sfss_ray.config.train import PretrainConfig, TrainConfig
from sfss_ray.errors import ConfigError
from sfss_ray.storage.text import read_text

LabelsFormat = Literal[
    "auto",
    "train_ids",
    "cityscapes_label_ids",
    "gta5",
    "synthia",
    "camvid",
    "camvid_colours",
    "idd_level3",
    "idd_ids",
]
SourceWeights = Literal["auto", "student", "ema"]


@dataclass(frozen=True)
class Config:
    """The whole tree: what is computed (masks, train, ...) and where (compute)."""

    seed: int = 0
    """Seeds data order, augmentation, pair sampling and the search."""
    labels_format: LabelsFormat = "auto"
    """How label maps name classes; auto recognises it and says what it took: of Cityscapes' labelIds and
    labelTrainIds the labelIds, as its scorer does (train_ids takes the others). Speaks of `labels` of
    pretrain and evaluate and of `val_labels` elsewhere (val_labels of pretrain are always auto)."""
    labels_classes: str = ""
    """Classes of train ids where they are not the model's: a class set, or names separated by commas;
    a classes.txt beside the labels does the same."""
    source_weights: SourceWeights = "auto"
    """Which copy is read from a checkpoint that holds a student and its EMA copy (DAFormer, HRDA, MIC,
    SePiCo, CROTS, torchvision's references); auto: the student, or the EMA copy where it is alone."""
    white_level: float | None = None
    """The value that means white in images of more than 8 bits (1023 for 10 bits, 4095 for 12, 16383
    for 14, 65535 for 16, 1 or 255 for floats). None: found once for each folder, and printed."""
    masks: MaskConfig = field(default_factory=MaskConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self):
        require(self, "seed", 0, 2**31 - 1)
        require(self, "white_level", 0, above=True)
        require_one_of(self, "labels_format", get_args(LabelsFormat))
        require_one_of(self, "source_weights", get_args(SourceWeights))


def override(config: Config, values: dict[str, Any]) -> Config:
    """Return a copy of `config` with some values changed by dotted name.

    `override(config, {"train.loss.temperature": 0.2})`. Raises ConfigError for a name that does not
    exist (the known ones are listed) and for a value out of range or of another type.
    """
    for name, value in values.items():
        config = _replace(config, name.split("."), value, name)
    return config


def _replace(node: Any, path: list[str], value: Any, full_name: str) -> Any:
    known = [f.name for f in getattr(node, "__dataclass_fields__", {}).values()]
    if path[0] not in known:
        where = full_name.removesuffix(".".join(path)).rstrip(".") or "the config"
        raise ConfigError(
            f"unknown setting {full_name!r}: {where} knows {', '.join(known) or 'no parts'}"
        )
    current = getattr(node, path[0])
    if len(path) > 1:
        new = _replace(current, path[1:], value, full_name)
    elif value is None and may_be_none(node, path[0]):
        new = None
    else:
        free = "..." in str(node.__dataclass_fields__[path[0]].type)
        # Of the knobs that may be None all others are floats.
        new = _coerce(0.0 if current is None else current, value, full_name, free)
    return dataclasses.replace(node, **{path[0]: new})


def _coerce(current: Any, value: Any, name: str, any_length: bool = False) -> Any:
    """Bring a JSON value to the type of the current one, or refuse it."""
    if any_length and isinstance(value, (tuple, list)):
        return tuple(_coerce(current[0], v, name) for v in value)
    if isinstance(current, bool) or isinstance(value, bool):
        fits = isinstance(current, bool) and isinstance(value, bool)
    elif isinstance(current, float):
        fits, value = isinstance(value, (int, float)), value
        value = float(value) if fits else value
    elif isinstance(current, tuple):
        fits = isinstance(value, (tuple, list)) and len(value) == len(current)
        parts = zip(current, value, strict=True) if fits else ()
        value = tuple(_coerce(c, v, name) for c, v in parts) if fits else value
    else:
        fits = isinstance(value, type(current))
    if not fits:
        raise ConfigError(f"{name} is {value!r}: allowed is a {type(current).__name__}")
    return value


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value of every knob; `override(Config(), flatten(c)) == c`."""
    flat: dict[str, Any] = {}
    for knob in dataclasses.fields(config):
        value = getattr(config, knob.name)
        name = f"{prefix}{knob.name}"
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """'name: old -> new' for every flattened knob that differs."""
    names = sorted(old.keys() | new.keys())
    absent = "absent"
    return [
        f"{n}: {old.get(n, absent)} -> {new.get(n, absent)}"
        for n in names
        if old.get(n) != new.get(n)
    ]


def load_config(path: Path | str, base: Config | None = None) -> Config:
    """Read a config written as JSON: flat dotted names, as in `best_config.json` of a search."""
    try:
        values = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read config {str(path)!r} ({error}): give a JSON file of dotted names, such as"
            ' {"train.loss.temperature": 0.1}'
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"config {str(path)!r} is a JSON {type(values).__name__}: an object is needed"
        )
    return override(base or Config(), values)
