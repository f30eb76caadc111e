"""The study of shares of the source model as a user starts it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "studies" / "source_shares.py"


def test_every_share_of_every_seed_has_a_row(tmp_path):
    results = tmp_path / "results"
    command = [sys.executable, str(SCRIPT), "--pair", "streets", "--images", "8", "--steps", "2"]
    command += ["--seeds", "2", "--jobs", "1"]
    command += ["--work", str(tmp_path / "work"), "--results", str(results)]
    records = []
    for _ in range(2):  # the second call trains nothing
        output = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert output.returncode == 0, output.stdout + output.stderr
        path = results / "source_shares_streets_felzenszwalb.json"
        records.append(json.loads(path.read_text())["rows"])
    rows, again = records
    assert rows == again
    assert [row["seed"] for row in rows] == [0] * 8 + [1] * 8
    source, teacher, *students = rows[:8]
    assert (source["network"], teacher["network"]) == ("source-only", "teacher")
    assert source["miou"] == pytest.approx(44.44, abs=0.05)  # the source model as it is
    assert [row["share"] for row in students] == [0, 0.1, 0.25, 0.4, 0.5, 0.75]
    assert len({row["miou"] for row in students}) > 1
    means = (rows[2]["miou"] + rows[10]["miou"]) / 2
    table = (results / "source_shares_streets_felzenszwalb.md").read_text()
    assert f"| student | 0.00 | {means:.1f} ±" in table
    assert table in output.stdout
