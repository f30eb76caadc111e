"""The study of runs as a user starts them."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sfss_ray.errors import ConfigError

pytestmark = [pytest.mark.slow, pytest.mark.ray]
SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "studies" / "plain_runs.py"


def call(tmp_path, *options):
    command = [sys.executable, str(SCRIPT), "--pair", "streets", "--images", "16"]
    command += ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


def test_each_seed_is_a_run_with_a_verdict(tmp_path):
    output = call(
        tmp_path, "--steps", "2", "--seeds", "2", "--every", "2", "--shares", "0.5333333", "1"
    )
    assert output.returncode == 0, output.stdout + output.stderr
    stem = tmp_path / "results" / "trial_streets_every_2_2_steps_seeds_0_to_1"
    rows = json.loads(stem.with_suffix(".json").read_text())["rows"]
    shares = ["student, source_share 0.533333", "student, source_share 1"]
    networks = ["source-only", "student", *shares]
    assert [(row["network"], row["seed"]) for row in rows] == [
        (name, seed) for seed in (0, 1) for name in networks
    ]
    for source, student, same, all_source in (rows[:4], rows[4:]):
        assert same["miou"] == pytest.approx(student["miou"], abs=0.01)
        assert all_source["miou"] == pytest.approx(source["miou"], abs=0.01)
    assert {(row["images"], row["held_out"]) for row in rows} == {(8, 1)}
    assert rows[0]["miou"] == pytest.approx(44.44, abs=0.05)  # the source model as it is
    assert rows[1]["miou"] != rows[5]["miou"]
    table = stem.with_suffix(".md").read_text()
    assert f"{rows[1]['verdict']} (seed 0), {rows[5]['verdict']} (seed 1)" in table
    assert table in output.stdout


def test_numbers_below_1_are_refused(tmp_path):
    output = call(tmp_path, "--every", "0")
    assert output.returncode == 2
    assert "--steps, --every and --seeds are 1 or more" in output.stderr


def test_other_seeds_and_settings_do_not_overwrite_the_usual_runs(experiment, tmp_path):
    study = experiment("plain_runs")
    pair = experiment("domain_pairs").streets(tmp_path, 1)
    usual = {"steps": 100, "every": 1, "shares": [], "first_seed": 0, "seeds": 3, "set": []}
    settings = ["train.batch_norm=frozen", "train.augment.scale_range=[1, 2]"]
    settings += ["train.optim.learning_rate=5e-5"]
    for changes, options, name in (
        ({}, "", "plain_streets"),
        ({"every": 8, "shares": [0.25, 1]}, " --shares 0.25 1 --every 8", "plain_streets_every_8"),
        ({"seeds": 1}, " --first-seed 0 --seeds 1", "trial_streets_100_steps_seeds_0_to_0"),
        ({"first_seed": 3}, " --first-seed 3 --seeds 3", "trial_streets_100_steps_seeds_3_to_5"),
        (
            {"set": ["train.batch_norm=frozen", "train.source_share=0.5"]},
            " --first-seed 0 --seeds 3 --set train.batch_norm=frozen train.source_share=0.5",
            "trial_streets_100_steps_seeds_0_to_2_train_batch_norm_frozen_train_source_share_0_5",
        ),
    ):
        arguments = argparse.Namespace(**usual | changes)
        assert study.describe(pair, arguments) == (f"--pair streets --steps 100{options}", name)
    arguments = argparse.Namespace(**usual | {"set": settings})
    config = study.make_config(pair, arguments, seed=4)
    assert (config.seed, config.train.num_steps) == (4, 100)
    assert config.train.batch_norm == "frozen"
    assert config.train.augment.scale_range == (1, 2)
    assert config.train.optim.learning_rate == 5e-5
    assert study.name_settings(settings[1:2]) == "_train_augment_scale_range_1_2"


def test_a_setting_without_a_value_is_refused(experiment):
    with pytest.raises(ConfigError, match="--set takes NAME=VALUE"):
        experiment("plain_runs").read_settings(["train.batch_norm"])


def test_a_share_of_all_leaves_no_student_to_score_with_other_shares(tmp_path):
    output = call(tmp_path, "--shares", "0.5", "--set", "train.source_share=1")
    assert output.returncode == 2
    assert "--shares need a student" in output.stderr
