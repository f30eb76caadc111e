"""Each verb states the knobs that its function reads."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from sfss_ray import cli, config
from sfss_ray.cli.calls import Program, parse
from sfss_ray.config import Config, flatten
from sfss_ray.streets.default import SOURCE_MODEL
from sfss_ray.streets.scenes import write_streets

PREFIXES = {
    config.Config: "",
    config.MaskConfig: "masks.",
    config.PretrainConfig: "pretrain.",
    config.TrainConfig: "train.",
    config.OptimConfig: "train.optim.",
    config.AugmentConfig: "train.augment.",
    config.PairConfig: "train.pairs.",
    config.LossConfig: "train.loss.",
    config.EvaluationConfig: "evaluation.",
    config.TuneConfig: "tune.",
    config.ComputeConfig: "compute.",
}
COPIES = ("dataclasses.py", "tree.py", "ranges.py", "<string>")
"""Code that reads every knob to copy, compare or record a config."""


def test_every_name_is_a_knob_or_a_group():
    knobs = flatten(Config())
    for verb in cli.VERBS.values():
        for name in verb.uses:
            assert any(knob == name or knob.startswith(f"{name}.") for knob in knobs), name
        assert len(set(verb.uses)) == len(verb.uses)


def test_together_the_verbs_use_every_knob():
    used = {knob.name for verb in cli.VERBS.values() for knob in verb.knobs()}
    assert used == set(flatten(Config()))


@pytest.mark.parametrize(
    ("verb", "used", "unused"),
    [
        ("masks", "masks.regions", "train.num_steps"),
        ("masks import", "masks.images_per_shard", "masks.regions"),
        ("pretrain", "pretrain.augment.flip", "train.augment.flip"),
        ("train", "train.loss.temperature", "masks.regions"),
        ("adapt", "compute.mask_actors", "compute.concurrent_trials"),
        ("tune", "compute.concurrent_trials", "pretrain.network"),
        ("predict", "compute.predict_actors", "evaluation.held_out_share"),
        ("export", "seed", "compute.device"),
    ],
)
def test_verbs_use_some_knobs_and_not_others(verb, used, unused):
    assert cli.VERBS[verb].uses_knob(used)
    assert not cli.VERBS[verb].uses_knob(unused)


def test_a_group_stands_for_its_knobs_alone():
    """train_ids would not be a knob of the group train."""
    assert not cli.VERBS["train"].uses_knob("train_ids")
    assert not cli.VERBS["train"].uses_knob("pretrain.num_steps")


@pytest.mark.parametrize("name", cli.VERBS)
def test_presets_are_for_verbs_that_they_change(name):
    expected = {"pretrain", "train", "adapt", "tune", "verify", "evaluate", "predict"}
    assert cli.VERBS[name].uses_presets() == (name in expected)


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_verb_has_its_function(name):
    verb = cli.VERBS[name]
    assert callable(verb.function())
    assert "Args:" in verb.documentation()


@pytest.fixture(scope="module")
def streets(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("streets")
    write_streets(folder, "camera", 3, 4, (64, 128))
    return folder


@pytest.fixture
def reads(monkeypatch) -> set[str]:
    """The dotted names of all knobs that the code reads, apart from copies of whole configs."""
    names: set[str] = set()
    for config_class, prefix in PREFIXES.items():
        fields = {knob.name for knob in dataclasses.fields(config_class)}

        def read(self, name, fields=fields, prefix=prefix):
            value = object.__getattribute__(self, name)
            if name in fields and not dataclasses.is_dataclass(value):
                file = sys._getframe(1).f_code.co_filename
                if not file.endswith(COPIES):
                    names.add(prefix + name)
            return value

        monkeypatch.setattr(config_class, "__getattribute__", read)
    return names


CPU = ["--compute.device", "cpu"]
PLAN = ["--source-model", "@model", "--target-images", "@images", "--output-dir", "@out", *CPU]
PLAN += ["--train.batch-size", "2", "--train.augment.crop-size", "32", "64", "--dry-run"]
RUNS = {
    "verify": ["--source-model", "@model", "--images", "@images", "--labels", "@labels", *CPU],
    "evaluate": ["--model", "@model", "--images", "@images", "--labels", "@labels", *CPU],
    "data check": ["@images", "--labels", "@labels"],
    "predict": ["@model", "@images", "@out", *CPU],
    "masks inspect": ["@masks", "--pictures", "0"],
    "adapt": PLAN,
    "tune": PLAN,
}
"""Verbs that run in this process. A dry run reads what its run would read before a cluster starts."""


@pytest.mark.parametrize("name", RUNS)
def test_functions_read_no_other_knobs(name, streets, data, reads, tmp_path: Path):
    paths = {
        "@model": SOURCE_MODEL,
        "@images": streets / "images",
        "@labels": streets / "labels",
        "@masks": data / "masks",
        "@out": tmp_path / "out",
    }
    words = [str(paths.get(word, word)) for word in RUNS[name]]
    verb = cli.VERBS[name]
    call = parse(Program(verb, name), words)
    reads.clear()
    call.result()
    assert reads, "nothing was read"
    assert reads <= {knob.name for knob in verb.knobs()}
