"""The recipes are verbs with defaults of their own, and the embedded default without data."""

from __future__ import annotations

import importlib
import inspect
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cli_samples import SHARED_CASES, TARGET, VAL, one_error, words_of, write_cli_data

from sfss_ray import cli
from sfss_ray.cli.calls import Program, parse
from sfss_ray.config import Config, flatten
from sfss_ray.runtime import cluster
from sfss_ray.streets.default import SOURCE_MODEL, embedded_config
from sfss_ray.streets.scenes import write_streets

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
RECIPES = ("tune_gta2cs", "adapt_gta2cs", "adapt_synthia2cs")


@pytest.fixture(autouse=True)
def experiments(monkeypatch):
    """Recipes are importable, and starting a cluster fails the test."""

    def fail() -> None:
        raise AssertionError("a cluster would have been started")

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    monkeypatch.setattr(cluster, "prepare_environment", fail)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return write_cli_data(tmp_path_factory.mktemp("data"))


def run_recipe(name: str, words: list[str]) -> int:
    return importlib.import_module(name).main(words)


def run_script(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=EXPERIMENTS.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("name", RECIPES)
def test_help_loads_nothing_heavy(name):
    process = run_script("-X", "importtime", EXPERIMENTS / f"{name}.py", "--help")
    assert process.returncode == 0
    loaded = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
    assert {"recipe", "sfss_ray.cli"} <= loaded
    assert not loaded & {"torch", "torchvision", "ray", "tyro", "segment_anything"}
    assert process.stdout.startswith(f"usage: python experiments/{name}.py [OPTIONS]\n")
    for text in ("embedded default", "--source-model PATH", "--dry-run", "--preset NAME"):
        assert text in process.stdout
    assert ("--tune.num-trials" in process.stdout) == (name == "tune_gta2cs")
    assert f"[runs/{name.removeprefix('tune_')}]" in process.stdout


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_options_of_its_verb(name):
    """A preset and its image size mean the same in a recipe and in a verb."""
    recipe = importlib.import_module(name).RECIPE
    words = ["--preset", "cnn", "--train.num-steps", "7", "--seed", "3"]
    words += ["--source-model", "m", "--target-images", "t"]
    call = parse(recipe.program(Config()), words)
    of_verb = parse(
        Program(cli.VERBS[recipe.verb], ""), [*words, "--output-dir", str(recipe.output_dir)]
    )
    assert call == of_verb
    assert (call.config.train.num_steps, call.config.seed) == (7, 3)
    assert call.config.train.augment.max_size == 1024


@pytest.mark.parametrize("name", RECIPES)
def test_without_data_the_config_is_the_embedded_one(name, capsys):
    assert run_recipe(name, ["--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == flatten(embedded_config())
    assert run_recipe(name, ["--print-config", "--source-model", "x", "--target-images", "y"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == flatten(Config())


def test_without_arguments_the_embedded_default_runs_as_it_is(monkeypatch, tmp_path: Path):
    from sfss_ray import pipeline

    calls = []

    def job(**arguments):
        calls.append(arguments)
        raise KeyboardInterrupt

    for name, function in (("tune_gta2cs", "tune_hyperparameters"), ("adapt_gta2cs", "adapt")):
        real = getattr(pipeline, function)
        job.__doc__ = real.__doc__
        job.__signature__ = inspect.signature(real, eval_str=True)
        monkeypatch.setattr(pipeline, function, job)
        assert run_recipe(name, ["--output-dir", str(tmp_path)]) == cli.INTERRUPTED
    for arguments in calls:
        data = tmp_path / "data"
        assert arguments == {
            "source_model": SOURCE_MODEL,
            "target_images": data / "target" / "images",
            "val_images": data / "val" / "images",
            "val_labels": data / "val" / "labels",
            "output_dir": tmp_path / "run",
            "config": embedded_config(),
            "card": None,
            "class_groups": None,
            "sam_checkpoint": None,
            "sam_type": "auto",
            "masks": None,
            "trackers": (),
        }
        assert len(list(arguments["target_images"].iterdir())) == 96
    assert len(calls) == 2


@pytest.mark.parametrize("preset", ["cnn", "transformer"])
def test_presets_of_networks_need_data(preset, tmp_path: Path, capsys):
    code = run_recipe("adapt_gta2cs", ["--preset", preset, "--output-dir", str(tmp_path)])
    line = one_error(code, capsys.readouterr().err)
    assert f"--preset {preset} is for networks and images of published sizes" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", SHARED_CASES)
def test_bad_input_of_the_recipe_is_one_line(case, data, tmp_path, capsys):
    changes, reason = SHARED_CASES[case]
    options = TARGET | {"output-dir": "@"} | changes
    code = run_recipe("tune_gta2cs", words_of(options, data, tmp_path / "out"))
    assert re.search(reason, one_error(code, capsys.readouterr().err))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tune.num-trials": "0"}, "num_trials is 0: allowed"),
        ({"output": "x"}, "--output has a new name: use --output-dir"),
        ({"protocol": "cnn"}, "--protocol has a new name: use --preset"),
        ({"num-trials": "3"}, "--num-trials has a new name: use --tune.num-trials"),
        ({"num-steps": "3"}, "--num-steps has a new name: use --train.num-steps"),
        ({"pretrain.num-steps": "3"}, "it is used by pretrain"),
    ],
)
def test_options_of_the_recipe_are_checked(options, reason, data, tmp_path, capsys):
    words = words_of(TARGET | {"output-dir": "@"} | options, data, tmp_path / "out")
    code = run_recipe("tune_gta2cs", words)
    assert reason in one_error(code, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"source-model": "@source.pt"}, "--target-images is missing"),
        ({"target-images": "@images"}, "--source-model is missing"),
        (VAL, "--source-model and --target-images are missing"),
        ({"sam-checkpoint": "@source.pt"}, "--source-model and --target-images are missing"),
        ({"masks": "@masks"}, "--source-model and --target-images are missing"),
    ],
)
def test_half_of_the_recipes_data_is_refused(options, reason, data, tmp_path, capsys):
    words = words_of(options | {"output-dir": "@"}, data, tmp_path / "out")
    code = run_recipe("tune_gta2cs", words)
    assert reason in one_error(code, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_in_a_shell_bad_input_is_one_line_too(data, tmp_path):
    options = TARGET | {"target-images": "@empty", "output-dir": "@"}
    words = words_of(options, data, tmp_path / "out")
    process = run_script(EXPERIMENTS / "tune_gta2cs.py", *words)
    assert "no image in" in one_error(process.returncode, process.stderr)
    assert process.stdout == ""


@pytest.mark.parametrize("name", RECIPES)
def test_a_dry_run_prints_the_plan_and_writes_nothing(name, tmp_path: Path, capsys):
    write_streets(tmp_path / "t", "camera", 5, 4, (64, 128), with_labels=False)
    words = ["--source-model", str(SOURCE_MODEL), "--target-images", str(tmp_path / "t" / "images")]
    words += ["--output-dir", str(tmp_path / "out"), "--train.num-steps", "30", "--dry-run"]
    assert run_recipe(name, words) == 0
    page = capsys.readouterr().out
    assert "masks to make: 4" in page
    assert ("8 trials" in page) == (name == "tune_gta2cs")
    assert "ready: nothing is missing" in page
    assert ("scored over synthia-16, the model has cityscapes-19" in page) == ("synthia" in name)
    assert "not measured" not in page
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_the_embedded_default_measures_every_stage(tmp_path: Path, capsys):
    assert run_recipe("adapt_gta2cs", ["--output-dir", str(tmp_path / "out"), "--dry-run"]) == 0
    page = capsys.readouterr().out
    assert "a training of 160 steps" in page
    assert "not measured" not in page


def test_a_dry_run_names_all_that_is_missing(tmp_path: Path, capsys):
    words = [
        "--dry-run",
        "--output-dir",
        str(tmp_path / "out"),
        "--source-model",
        str(tmp_path / "x"),
    ]
    assert run_recipe("tune_gta2cs", [*words, "--sam-checkpoint", str(tmp_path / "y")]) == 1
    page = capsys.readouterr().out
    assert page.count("MISSING") == 3
    assert "not ready: 3 missing" in page
    assert "no target images were given" in page


def test_masks_are_passed_on(tmp_path: Path, capsys):
    """The plan and the run both check them. Without a model they are not part of the default's data."""
    masks = ["--masks", str(tmp_path / "nowhere")]
    write_streets(tmp_path / "t", "camera", 5, 4, (64, 128), with_labels=False)
    words = ["--source-model", str(SOURCE_MODEL), "--target-images", str(tmp_path / "t" / "images")]
    words += ["--output-dir", str(tmp_path / "out"), *masks]
    assert run_recipe("tune_gta2cs", [*words, "--dry-run"]) == 1
    page = capsys.readouterr().out
    assert page.count("MISSING") == 1
    (missing,) = [line for line in page.splitlines() if "MISSING" in line]
    assert run_recipe("tune_gta2cs", words) == 2
    (refused,) = capsys.readouterr().err.splitlines()
    reason = refused.removeprefix("error: ")
    assert "nowhere" in reason
    assert missing.endswith(reason)
    assert run_recipe("tune_gta2cs", ["--output-dir", str(tmp_path / "out"), *masks]) == 2
    assert "--source-model and --target-images are missing" in capsys.readouterr().err
