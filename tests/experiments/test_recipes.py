"""The recipes share one module; protocols become config values; a dry run starts nothing."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfss_ray import cli
from sfss_ray.config import Config, flatten
from sfss_ray.runtime import cluster
from sfss_ray.streets.default import SOURCE_MODEL, embedded_config
from sfss_ray.streets.scenes import write_streets

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
RECIPES = ("tune_gta2cs", "adapt_gta2cs", "adapt_synthia2cs")


@pytest.fixture(autouse=True)
def experiments(monkeypatch):
    """Recipes are importable, and starting a cluster fails the test."""

    def started() -> None:
        raise AssertionError("a cluster would have been started")

    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    monkeypatch.setattr(cluster, "prepare_environment", started)


def run_recipe(name: str, words: list[str]) -> int:
    module = importlib.import_module(name)
    arguments = module.parse_arguments(words)
    return cli.run_guarded(lambda: module.run(arguments))


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """Images of 2048x1024, as Cityscapes' are."""
    folder = tmp_path_factory.mktemp("wide")
    Image.fromarray(np.zeros((1024, 2048, 3), np.uint8)).save(folder / "a.png")
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_help_loads_nothing_heavy(name):
    words = [sys.executable, "-X", "importtime", str(EXPERIMENTS / f"{name}.py"), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "recipe" in loaded
    assert not loaded & {"torch", "ray", "cv2", "numpy", "pyarrow", "tyro"}
    assert "--dry-run" in done.stdout
    assert ("--num-trials" in done.stdout) == (name == "tune_gta2cs")


@pytest.mark.parametrize("protocol", ["cnn", "transformer"])
def test_protocols_are_the_fields(protocol, wide, tmp_path: Path):
    recipe = importlib.import_module("recipe")
    module = importlib.import_module("adapt_gta2cs")
    words = ["--protocol", protocol, "--target-images", str(wide)]
    config = recipe.build_config(module.parse_arguments(words), Config())
    knobs = flatten(config)
    # The network sees 1024x512, zoomed by .75 to 1.25: half of that on images of 2048x1024.
    assert knobs["train.augment.scale_range"] == [0.375, 0.625]
    assert knobs["evaluation.max_size"] == 1024
    optim = config.train.optim
    if protocol == "cnn":
        assert (optim.optimizer, optim.learning_rate, optim.weight_decay) == ("sgd", 2.5e-4, 5e-4)
        assert config.train.augment.crop_size == (256, 512)
    else:
        assert (optim.optimizer, optim.learning_rate, optim.weight_decay) == ("adamw", 6e-5, 0.01)
        assert (config.train.num_steps, config.train.batch_size) == (40000, 2)
        assert optim.warmup_steps == 1500
    assert optim.head_multiplier == 10


def test_the_command_line_wins_over_the_protocol(wide):
    recipe = importlib.import_module("recipe")
    module = importlib.import_module("tune_gta2cs")
    words = ["--protocol", "cnn", "--target-images", str(wide), "--num-steps", "7", "--seed", "3"]
    config = recipe.build_config(module.parse_arguments(words), Config())
    assert (config.train.num_steps, config.seed) == (7, 3)
    assert config.train.optim.optimizer == "sgd"


def test_without_arguments_the_embedded_default_runs_as_it_is(monkeypatch, tmp_path: Path):
    import sfss_ray

    calls = []

    def job(**given):
        calls.append(given)
        raise KeyboardInterrupt

    for name, function in (("tune_gta2cs", "tune_hyperparameters"), ("adapt_gta2cs", "adapt")):
        monkeypatch.setitem(vars(sfss_ray), function, job)
        assert run_recipe(name, ["--output", str(tmp_path)]) == cli.INTERRUPTED
    for given in calls:
        assert given["config"] == embedded_config()
        assert given["source_model"] == SOURCE_MODEL
        assert given["output_dir"] == tmp_path / "run"
        assert len(list((tmp_path / "data" / "target" / "images").iterdir())) == 96
    assert len(calls) == 2


def test_a_protocol_needs_data(tmp_path: Path, capsys):
    assert run_recipe("adapt_gta2cs", ["--protocol", "cnn", "--output", str(tmp_path)]) == 2
    assert "--protocol is for networks and images of the field's size" in capsys.readouterr().err


@pytest.mark.parametrize("name", RECIPES)
def test_a_dry_run_prints_the_plan_and_writes_nothing(name, tmp_path: Path, capsys):
    write_streets(tmp_path / "t", "camera", 5, 4, (64, 128), with_labels=False)
    words = ["--source-model", str(SOURCE_MODEL), "--target-images", str(tmp_path / "t" / "images")]
    words += ["--output", str(tmp_path / "out"), "--num-steps", "30", "--dry-run"]
    assert run_recipe(name, words) == 0
    page = capsys.readouterr().out
    assert "masks to make: 4" in page
    assert ("8 trials" in page) == (name == "tune_gta2cs")
    assert "ready: nothing is missing" in page
    assert ("scored over synthia-16, the model has cityscapes-19" in page) == ("synthia" in name)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_names_all_that_is_missing(tmp_path: Path, capsys):
    words = ["--dry-run", "--output", str(tmp_path / "out"), "--source-model", str(tmp_path / "x")]
    assert run_recipe("tune_gta2cs", [*words, "--sam-checkpoint", str(tmp_path / "y")]) == 1
    page = capsys.readouterr().out
    assert page.count("MISSING") == 3
    assert "not ready: 3 missing" in page
    assert "no target images were given" in page


def test_masks_are_passed_on(tmp_path: Path, capsys):
    """To the plan as to the run; without a model they are no data of the embedded default."""
    masks = ["--masks", str(tmp_path / "nowhere")]
    write_streets(tmp_path / "t", "camera", 5, 4, (64, 128), with_labels=False)
    words = ["--source-model", str(SOURCE_MODEL), "--target-images", str(tmp_path / "t" / "images")]
    words += ["--output", str(tmp_path / "out"), *masks]
    assert run_recipe("tune_gta2cs", [*words, "--dry-run"]) == 1
    page = capsys.readouterr().out
    assert page.count("MISSING") == 1
    (missing,) = [line for line in page.splitlines() if "MISSING" in line]
    assert run_recipe("tune_gta2cs", words) == 2
    (refused,) = capsys.readouterr().err.splitlines()
    reason = refused.removeprefix("error: ")
    assert "nowhere" in reason
    assert missing.endswith(reason)
    assert run_recipe("tune_gta2cs", ["--output", str(tmp_path / "out"), *masks]) == 2
    assert "--source-model and --target-images are missing" in capsys.readouterr().err
