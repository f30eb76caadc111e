"""Config files: JSON or YAML, flat or nested, read with the safe loader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sfss_ray.config import Config, flatten, load_config, override, to_yaml
from sfss_ray.errors import ConfigError

CHANGED = override(
    Config(),
    {
        "seed": 3,
        "white_level": 1023,
        "labels_classes": "road, sky: blue",
        "train.optim.learning_rate": 3e-7,
        "train.augment.crop_size": [64, 96],
        "train.loss.teacher_scales": [0.5, 1, 2],
        "compute.address": "10.0.0.1:6379",
    },
)


def test_load_config_sets_a_file_over_a_config(tmp_path: Path):
    path = tmp_path / "best.json"
    path.write_text(json.dumps({"train.loss.temperature": 0.3}))
    assert load_config(path) == override(Config(), {"train.loss.temperature": 0.3})
    loaded = load_config(path, override(Config(), {"seed": 7, "train.loss.temperature": 0.5}))
    assert (loaded.seed, loaded.train.loss.temperature) == (7, 0.3)


@pytest.mark.parametrize("name", ["a.yaml", "a.yml", "a.cfg", "no_suffix"])
@pytest.mark.parametrize(
    "content",
    [
        "train.loss.temperature: 0.3\ntrain.augment.crop_size: [64, 96]\nseed: 2\n",
        "seed: 2\ntrain:\n  loss: {temperature: 0.3}\n  augment:\n    crop_size:\n    - 64\n    - 96\n",
        "seed: 2\ntrain:\n  loss.temperature: 3e-1\n  augment.crop_size: [64, 96]\n",
        '{"train": {"loss.temperature": 0.3, "augment": {"crop_size": [64, 96]}}, "seed": 2}',
    ],
)
def test_yaml_may_be_flat_or_nested(name, content, tmp_path: Path):
    (tmp_path / name).write_text(content)
    expected = {"train.loss.temperature": 0.3, "train.augment.crop_size": [64, 96], "seed": 2}
    assert load_config(tmp_path / name) == override(Config(), expected)


def test_json_may_be_nested_too(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"train": {"num_steps": 7}, "train.loss.temperature": 1}')
    loaded = load_config(tmp_path / "a.json")
    assert (loaded.train.num_steps, loaded.train.loss.temperature) == (7, 1.0)


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("2E3", 2000.0), (".5e-1", 0.05), ("1.5e+1", 15.0)]
)
def test_yaml_reads_exponents_without_a_point(text, value, tmp_path: Path):
    """YAML 1.1 would make `1e-4` a string."""
    (tmp_path / "a.yaml").write_text(f"train.loss.ramp: [1e-9, 1]\ncompute.cpus_per_worker: {text}")
    assert load_config(tmp_path / "a.yaml").compute.cpus_per_worker == value


@pytest.mark.parametrize("config", [Config(), CHANGED])
def test_yaml_is_read_back_as_it_was_written(config, tmp_path: Path):
    (tmp_path / "a.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "a.yaml") == config
    assert yaml.safe_load(to_yaml(config)) == flatten(config)
    assert len(to_yaml(config).splitlines()) == len(flatten(config))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot read config"),
        (b'{"seed": 1', "cannot read config"),
        (b"\xff\xfe\x00", "cannot read config"),
        (b"[1]", r"it holds a list\): give a JSON or YAML file"),
        (b'{"train": {"num_steps": "many"}}', "train.num_steps is 'many': allowed is a int"),
        (b'{"train": {"steps": 1}}', "unknown setting 'train.steps': train knows num_steps"),
        (b'{"train": 1}', "train is 1: allowed is a group of settings, given by name: train.num_"),
        (b"[" * 3000, "nested too deeply, or contains itself"),
        (b'{"a":' * 99_999, "nested too deeply, or contains itself"),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_bad_files_are_refused_in_one_line(content, reason, suffix, tmp_path: Path):
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as refused:
        load_config(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("labels_format: yes", "labels_format is True: allowed is one of auto, train_ids, "),
        ("a: &a {b: *a}", "nested too deeply, or contains itself"),
        ("train: &a {loss: *a}", "nested too deeply, or contains itself"),
        (
            "train.loss.temperature: 1" + 400 * "0",
            r"temperature is 1000+\.\.\.: allowed is a float",
        ),
        ("seed: 1" + 400 * "0", r"seed is 1000+\.\.\.: allowed is a whole number in "),
        ("seed: 0x" + 5000 * "f", "seed is a number of thousands of digits: allowed is a whole"),
    ],
)
def test_bad_yaml_is_refused_in_one_line(content, reason, tmp_path: Path):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ConfigError, match=reason) as refused:
        load_config(tmp_path / "a.yaml")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_nan_is_refused(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"train.loss.temperature": NaN}')
    (tmp_path / "a.yaml").write_text("train.loss.temperature: .nan")
    for name in ("a.json", "a.yaml"):
        with pytest.raises(ConfigError, match="temperature is nan"):
            load_config(tmp_path / name)


def test_yaml_cannot_make_objects(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("seed: !!python/object/apply:os.getpid []")
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        load_config(tmp_path / "a.yaml")


def test_missing_files_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        load_config(tmp_path / "nowhere.json")


def test_a_config_file_may_be_an_address(tmp_path):
    (tmp_path / "my config.json").write_text('{"seed": 7}')
    assert load_config(f"file://{tmp_path}/my%20config.json").seed == 7
    with pytest.raises(ConfigError, match=r"cannot read config 's3a://fleet/a.json'") as refused:
        load_config("s3a://user:secret@fleet/a.json")
    assert "secret" not in str(refused.value)
