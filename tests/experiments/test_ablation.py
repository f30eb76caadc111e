"""The ablation as a user starts it, with few scenes and steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from concept_models import save_concept_model

pytestmark = pytest.mark.slow
EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments" / "studies"
ROWS = ["source_only", "batch_norm", "tent", "pooled_vote", "full_ground_truth", "ceiling"]


def run(tmp_path, *words):
    command = [sys.executable, str(EXPERIMENTS / "ablation.py"), "--images", "8", "--steps", "4"]
    command += ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    result = subprocess.run(
        [*command, *words],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_rows_are_run_once_and_tabulated(tmp_path):
    words = ["--rows", *ROWS, "--seeds", "2", "--jobs", "2"]
    output = run(tmp_path, *words)
    assert f"{2 * len(ROWS)}/{2 * len(ROWS)}" in output
    record = json.loads((tmp_path / "results" / "ablation_streets_4_steps.json").read_text())
    assert record["command"].endswith("ablation.py --table ablation --pair streets --steps 4")
    table = record["rows"]
    assert [entry["key"] for entry in table] == ROWS  # source-only first, the ceiling last
    base = table[0]["mean"]
    assert base == pytest.approx(44.44, abs=0.05)
    for entry in table:
        assert [result["seed"] for result in entry["seeds"]] == [0, 1]
        values = [result["student_last"] for result in entry["seeds"]]
        assert entry["mean"] == pytest.approx(sum(values) / 2, abs=2e-3)  # rounded in the record
        assert len(entry["seeds"][0]["per_class"]) == 19
    assert {entry["regions"] for entry in table} == {"none", "felzenszwalb", "ground_truth"}
    assert table[0]["std"] == 0
    assert table[2]["seeds"][0]["student_last"] != base
    assert (tmp_path / "results" / "ablation_streets_4_steps.png").stat().st_size > 5000
    text = (tmp_path / "results" / "ablation_streets_4_steps.md").read_text()
    assert "| source-only | none | 2 | 44.4 ± 0.0 | +0.0 |" in text

    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("result.json")}
    assert len(stamps) == 2 * len(ROWS)
    run(tmp_path, *words)
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "work").rglob("result.json")}

    # The record alone is enough too, as long as the settings are the same.
    table = (tmp_path / "results" / "ablation_streets_4_steps.md").read_text()
    run(tmp_path, *words, "--work", str(tmp_path / "another"))
    assert not list((tmp_path / "another").rglob("result.json"))
    assert (tmp_path / "results" / "ablation_streets_4_steps.md").read_text() == table
    run(
        tmp_path,
        "--rows",
        "tent",
        "--seeds",
        "1",
        "--steps",
        "2",
        "--work",
        str(tmp_path / "third"),
    )
    assert len(list((tmp_path / "third").rglob("result.json"))) == 1


def test_a_checkpoint_of_others_is_scored_in_the_classes_of_camvid(tmp_path, shared_data):
    checkpoint = shared_data("models") / "espnet_p_2_q_8.pth"
    pair = ["--pair", "cityscapes2camvid_dusk", "--source-model", str(checkpoint)]
    data = ["--data", str(shared_data("camvid"))]
    output = run(tmp_path, *pair, *data, "--rows", "source_only", "--seeds", "1")
    assert "| source-only | none | 1 |" in output
    name = "ablation_cityscapes2camvid_dusk_espnet_p_2_q_8_4_steps"
    record = json.loads((tmp_path / "results" / f"{name}.json").read_text())
    assert record["command"].endswith(
        "--pair cityscapes2camvid_dusk --data DIR --source-model espnet_p_2_q_8.pth --steps 4"
    )
    assert len(record["rows"][0]["seeds"][0]["per_class"]) == 11


def test_a_row_in_which_sam_3_votes_is_named_as_external_knowledge(tmp_path):
    network = save_concept_model(tmp_path / "sam3")
    rows = ["source_only", "pooled_vote", "concepts_felzenszwalb"]
    words = ["--rows", *rows, "--seeds", "1", "--jobs", "1", "--concepts", str(network)]
    output = run(tmp_path, *words)
    assert "| A1 + pooled vote + SAM 3 prompted with class names (external knowledge) |" in output
    assert "Rows named external knowledge also use SAM 3" in output
    record = json.loads((tmp_path / "results" / "ablation_streets_4_steps.json").read_text())
    assert record["command"].endswith("--pair streets --steps 4 --concepts FOLDER")
    base, vote, external = record["rows"]
    assert ("external" in base, "external" in vote, external["external"]) == (False, False, True)
    assert external["mean"] != vote["mean"]
    plain = run(tmp_path, "--rows", *rows[:2], "--seeds", "1", "--jobs", "1")
    assert "external" not in plain
