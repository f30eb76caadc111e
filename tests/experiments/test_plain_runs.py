"""The study of runs as a user starts them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    stem = tmp_path / "results" / "plain_streets_every_2"
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
