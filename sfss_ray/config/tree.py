"""The whole config tree, and the one way to change a value in it by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from sfss_ray.config.masks import MaskConfig
from sfss_ray.config.ranges import Common, Range, check_knobs, coerce, knob_types
from sfss_ray.config.running import ComputeConfig, EvaluationConfig, ReportConfig, TuneConfig
from sfss_ray.config.train import PretrainConfig, TrainConfig
from sfss_ray.errors import ConfigError

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
    "mapillary",
]
SourceWeights = Literal["auto", "student", "ema"]


@dataclass(frozen=True)
class Config:
    """The whole tree: what is computed (masks, train, ...) and on which machines (compute)."""

    seed: Annotated[int, Range(0, 2**31 - 1), Common] = 0
    """Seed of data order, augmentation, pairs and search."""
    labels_format: LabelsFormat = "auto"
    """How label maps encode classes. auto recognises the format and prints it. Where Cityscapes'
    labelIds and labelTrainIds both exist, auto reads the labelIds, as the official scorer does, and
    train_ids reads the others. Applies to `labels` of pretrain and evaluate, and to `val_labels` of
    the other verbs (val_labels of pretrain are always auto)."""
    labels_classes: str = ""
    """Classes of train ids that are not the model's: a class set, or names separated by commas. A
    classes.txt beside the labels has the same effect."""
    source_weights: SourceWeights = "auto"
    """Weights to read from a checkpoint that holds a student and its EMA copy (DAFormer, HRDA, MIC,
    SePiCo, CROTS, torchvision's references). auto: the student, or the EMA copy if it is alone."""
    white_level: Annotated[float, Range(0, above=True)] | None = None
    """Value that means white in images of more than 8 bits (1023 for 10 bits, 4095 for 12, 16383
    for 14, 65535 for 16, 1 or 255 for floats). None: measured once per folder, and printed."""
    masks: MaskConfig = field(default_factory=MaskConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self):
        check_knobs(self)


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a copy of `config` with some values changed by dotted name.

    `override(config, {"train.loss.temperature": 0.2})`. All values of a group are set together, so
    their order does not matter. A whole number may stand for a float, and a list for a tuple.

    Raises:
        ConfigError: a name does not exist (the message lists the known ones), or a value is of another
            type or out of its range.
    """
    return _replace(config, {tuple(name.split(".")): value for name, value in values.items()}, ())


def _replace(node: Any, values: dict[tuple[str, ...], Any], parents: tuple[str, ...]) -> Any:
    """Return a copy of one config dataclass with values set by their path below it."""
    knobs = knob_types(type(node)) if hasattr(node, "__dataclass_fields__") else {}
    changes: dict[str, Any] = {}
    nested: dict[str, dict[tuple[str, ...], Any]] = {}
    for path, value in values.items():
        full_name = ".".join((*parents, *path))
        if path[0] not in knobs:
            group = ".".join(parents) or "the config"
            names = ", ".join(knobs) or "no parts"
            raise ConfigError(f"unknown setting {full_name!r}: {group} knows {names}")
        if path[1:]:
            nested.setdefault(path[0], {})[path[1:]] = value
        else:
            changes[path[0]] = coerce(value, knobs[path[0]], full_name)
    for name, below in nested.items():
        changes[name] = _replace(changes.get(name, getattr(node, name)), below, (*parents, name))
    return dataclasses.replace(node, **changes) if changes else node


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return dotted name -> value of every knob, so that `override(Config(), flatten(c)) == c`."""
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
    """Return a line 'name: old -> new' for every flattened knob that differs."""
    names = sorted(old.keys() | new.keys())
    absent = "absent"
    return [
        f"{n}: {old.get(n, absent)} -> {new.get(n, absent)}"
        for n in names
        if old.get(n) != new.get(n)
    ]
