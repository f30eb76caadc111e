"""Checkpoints and progress files of a run."""

import json

import pytest
import torch
from object_storage import bucket_address, s3_options  # noqa: F401

from sfss_ray.storage.places import to_place
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


def test_a_run_at_an_address_resumes_from_its_objects(bucket_address):  # noqa: F811
    """Another process, on another node, finds checkpoint and progress of the first."""
    address = bucket_address.format("run")
    first = LocalRun(address)
    assert first.resume_state() is None
    for step in (1, 2):
        first.log({"step": step, "loss": 1.0 / step})
    first.report({"loss": 0.5}, lambda: {"step": 2, "weights": torch.tensor([1.0])})
    second = LocalRun(address)
    state = second.resume_state()
    assert state is not None
    assert state["step"] == 2
    second.log({"step": 3, "loss": 0.25})
    second.save("statistics.pt", {"mean": torch.tensor([1.0])})
    assert read_progress(to_place(address)) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 0.25},
    ]
    names = sorted(file.name for file in to_place(address).iterdir())
    assert names == ["progress.jsonl", "state.pt", "statistics.pt"]
