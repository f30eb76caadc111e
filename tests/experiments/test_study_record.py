"""Records of studies: compact JSON that states what produced it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).resolve().parents[2] / "experiments" / "studies" / "results"
MOST_LINES = 60


@pytest.fixture
def study_record(experiment):
    return experiment("study_record")


def test_a_record_states_its_origin_and_keeps_its_rows(study_record, tmp_path):
    path = tmp_path / "ablation_streets.json"
    rows = [{"row": "a", "miou": 44.43437, "per_class": [1.23456, float("nan")]}, {"row": "b"}]
    study_record.write_record(path, "python x.py", "cpu", rows, {"pair": "streets"})
    record = json.loads(path.read_text())
    assert record["schema_version"] == 1
    assert record["study"] == "ablation_streets"
    assert record["command"] == "python x.py"
    assert record["pair"] == "streets"
    assert record["device"].startswith("CPU (")
    assert set(record["versions"]) == {"python", "torch", "numpy", "opencv-python", "scikit-image"}
    assert study_record.read_rows(path) == [
        {"row": "a", "miou": 44.434, "per_class": [1.235, None]},
        {"row": "b"},
    ]


def test_each_row_is_one_line(study_record):
    text = study_record.format_record({"study": "x"}, [{"k": [1, 2]}, {"k": {"a": 1}}])
    assert text.splitlines() == [
        "{",
        ' "study": "x",',
        ' "rows": [',
        '  {"k": [1, 2]},',
        '  {"k": {"a": 1}}',
        " ]",
        "}",
    ]


def test_another_schema_version_is_refused(study_record, tmp_path):
    path = tmp_path / "old.json"
    path.write_text('{"schema_version": 7, "rows": []}')
    with pytest.raises(
        ValueError, match="schema version 7, this code reads 1: run the study again"
    ):
        study_record.read_rows(path)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_records_in_the_repository_are_complete_and_compact(study_record, path):
    assert study_record.read_rows(path)
    record = json.loads(path.read_text())
    assert {"study", "command", "commit", "device", "versions"} <= record.keys()
    assert "curve" not in path.read_text()
    assert len(path.read_text().splitlines()) < MOST_LINES
