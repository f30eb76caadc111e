"""The study of BatchNorm shares as a user starts it."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "studies" / "norm_shares.py"


def test_scores_of_the_target_images_have_a_column_where_they_are_known(experiment):
    pair = SimpleNamespace(name="day", images=[None] * 3, val=[None] * 2)
    rows = [{"share": 0.5, "miou": 41.24, "consistency": 0.6171}]
    rows.append({"share": 0.6, "found_on": 16, "miou": 42.5})
    as_markdown = experiment("norm_shares").as_markdown
    plain = as_markdown(pair, rows, "python x.py").splitlines()
    assert plain[0] == "# day: 3 unlabelled target images, 2 scored"
    assert plain[-2:] == ["| 0.50 | 41.2 | 0.617 |", "| 0.60 | 42.5 | found on 16 images |"]
    with_target = [row | {"target_miou": 50.0 + row["share"]} for row in rows]
    table = as_markdown(pair, with_target, "python x.py").splitlines()
    assert table[4].endswith("| mIoU % of the compared target images |")
    assert table[-2:] == [
        "| 0.50 | 41.2 | 0.617 | 50.5 |",
        "| 0.60 | 42.5 | found on 16 images | 50.6 |",
    ]


@pytest.mark.slow
def test_every_share_and_the_found_ones_have_a_row(tmp_path):
    results = tmp_path / "results"
    command = [sys.executable, str(SCRIPT), "--pair", "streets", "--images", "8", "--compared", "4"]
    command += ["--work", str(tmp_path / "work"), "--results", str(results)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert output.returncode == 0, output.stdout + output.stderr
    record = json.loads((results / "norm_shares_streets.json").read_text())
    *shares, found, found_by_a_run = record["rows"]
    assert [row["share"] for row in shares] == [0, 0.25, 0.5, 0.75, 1]
    assert shares[0]["miou"] == pytest.approx(44.44, abs=0.05)  # the source model as it is
    assert (found["found_on"], found_by_a_run["found_on"]) == (4, 8)
    for row in (found, found_by_a_run):
        assert 0 <= row["share"] <= 1
        assert min(row["miou"] for row in shares) - 0.5 <= row["miou"]
    table = (results / "norm_shares_streets.md").read_text()
    assert f"| 0.00 | {shares[0]['miou']:.1f} | {shares[0]['consistency']:.3f} |" in table
    assert table in output.stdout
