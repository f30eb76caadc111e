"""Checkpoints and progress files of a run."""

import json

import pytest
import torch

from sfss_ray.train.run_state import (
    LocalRun,
    ProgressLog,
    load_state,
    read_progress,
    save_state,
)


def test_progress_survives_a_killed_process(tmp_path):
    for step, loss in ((10, 1.0), (20, 2.0)):
        ProgressLog(tmp_path).append({"step": step, "loss": loss})
    with open(tmp_path / "progress.jsonl", "a") as file:
        file.write(json.dumps({"step": 30})[:5] + "\n")
    ProgressLog(tmp_path).append({"step": 20, "loss": 3.0})
    assert read_progress(tmp_path) == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 3.0}]
    assert read_progress(tmp_path / "nowhere") == []


def test_records_of_a_step_are_merged_and_sorted(tmp_path):
    for record in ({"step": 20, "loss": 2.0}, {"step": 10, "loss": 1.0}, {"step": 20, "miou": 5.0}):
        ProgressLog(tmp_path).append(record)
    assert read_progress(tmp_path) == [
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": 2.0, "miou": 5.0},
    ]


def test_a_state_is_written_whole_or_not_at_all(tmp_path):
    save_state(tmp_path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        save_state(tmp_path, {"step": lambda: None})
    assert load_state(tmp_path) == {"step": 1}


def test_a_local_run_saves_before_it_reports(tmp_path):
    run = LocalRun(tmp_path / "run", on_report=lambda metrics: reported.append((metrics, saved())))
    reported: list = []

    def saved():
        return load_state(run.folder)["weights"].tolist()

    assert run.resume_state() is None
    run.report({"loss": 1.0}, lambda: {"weights": torch.tensor([1.0, 2.0])})
    assert reported == [({"loss": 1.0}, [1.0, 2.0])]
    state = run.resume_state()
    assert state is not None
    assert state["weights"].tolist() == [1.0, 2.0]
    run.log({"step": 1})
    assert read_progress(tmp_path / "run") == [{"step": 1}]


def test_a_file_is_saved_beside_the_progress(tmp_path):
    LocalRun(tmp_path / "run").save("statistics.pt", {"mean": torch.tensor([1.0])})
    assert torch.load(tmp_path / "run" / "statistics.pt", weights_only=True)["mean"] == 1.0
