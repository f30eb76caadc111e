"""Progress of trainings that run elsewhere: new steps, time left, and the score of the choice."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from object_storage import bucket_address, s3_options  # noqa: F401

from sfss_ray.storage.places import ObjectPath, to_place
from sfss_ray.train import progress_tail
from sfss_ray.train.progress_tail import following
from sfss_ray.train.run_state import PROGRESS_FILE, ProgressLog


@pytest.fixture(autouse=True)
def polls_often(monkeypatch):
    monkeypatch.setattr(progress_tail, "_POLL_SECONDS", 0.01)


def log(folder: Path, step: int, **metrics: float) -> None:
    ProgressLog(folder).append({"step": step, "num_steps": 40} | metrics)


def shown(folder: Path, metrics: dict[str, float], **options: str) -> str:
    """The one line that is printed for a record."""
    lines: list[str] = []
    with following(lambda: {"train": folder}, lines.append, **options):
        log(folder, 10, **metrics)
    (line,) = lines
    return line.removeprefix("train 10/40, ")


def test_new_records_are_shown_with_the_time_left(tmp_path: Path):
    log(tmp_path, 10, loss=9.0)
    lines: list[str] = []
    with following(lambda: {"train": tmp_path}, lines.append):
        for step in (20, 30, 40):
            log(tmp_path, step, loss=step / 100)
            time.sleep(0.2)
    assert len(lines) == 3, "the first record is of an earlier call"
    assert lines[0] == "train 20/40, loss 0.200"
    assert lines[1].startswith("train 30/40 (")
    assert lines[1].endswith(" s left), loss 0.300")
    assert lines[2].startswith("train 40/40 (")
    assert "left" not in lines[2]


def test_the_chosen_batch_norm_statistics_are_shown_before_the_first_step(tmp_path: Path):
    choice = {"statistics_share": 0.45, "view_consistency": {"0.0": 0.61, "0.5": 0.6254}}
    lines: list[str] = []
    with following(lambda: {"train": tmp_path}, lines.append):
        ProgressLog(tmp_path).append({"step": 0, "num_steps": 40} | choice)
    assert lines == [
        "train: BatchNorm: 45% target statistics (consistency over views by share of the target's:"
        " 0% 0.610, 50% 0.625)"
    ]


def test_trials_that_start_later_are_followed_too(tmp_path: Path):
    lines: list[str] = []
    with following(lambda: {path.name: path for path in tmp_path.iterdir()}, lines.append):
        log(tmp_path / "trial-a", 10, loss=1.0)
        log(tmp_path / "trial-b", 10, loss=2.0)
    assert sorted(lines) == ["trial-a 10/40, loss 1.000", "trial-b 10/40, loss 2.000"]


def test_every_new_record_goes_to_the_callers_function(tmp_path: Path):
    log(tmp_path, 10, loss=9.0)
    records: list[tuple[str, int, float]] = []

    def on_record(name: str, record: dict) -> None:
        records.append((name, record["step"], record["loss"]))

    with following(lambda: {"train": tmp_path}, str, on_record):
        log(tmp_path, 20, loss=2.0)
        log(tmp_path, 30, loss=1.0)
    assert records == [("train", 20, 2.0), ("train", 30, 1.0)]


def test_a_line_that_is_being_written_is_shown_once_it_is_whole(tmp_path: Path):
    whole = json.dumps({"step": 10, "num_steps": 40, "loss": 1.0})
    lines: list[str] = []
    with following(lambda: {"train": tmp_path}, lines.append):
        (tmp_path / PROGRESS_FILE).write_text(whole[:9])
        time.sleep(0.1)
        assert lines == []
        (tmp_path / PROGRESS_FILE).write_text(whole + "\n")
    assert lines == ["train 10/40, loss 1.000"]


SCORES = {
    "loss": 0.5,
    "val_miou": 41.25,
    "mask_information": 0.1,
    "anchored_information": 0.2,
    "entropy": 0.3,
}


@pytest.mark.parametrize(
    ("score", "without", "expected"),
    [
        ("auto", [], "loss 0.500, val_miou 41.250"),
        ("val_miou", [], "loss 0.500, val_miou 41.250"),
        ("auto", ["val_miou"], "loss 0.500, anchored_information 0.200"),
        (
            "auto",
            ["val_miou", "anchored_information"],
            "loss 0.500, mask_information 0.100",
        ),
        (
            "anchored_information",
            [],
            "loss 0.500, anchored_information 0.200, val_miou 41.250 (not used for the choice)",
        ),
        ("entropy", ["val_miou"], "loss 0.500, entropy 0.300"),
        ("entropy", list(SCORES)[1:], "loss 0.500"),
    ],
)
def test_the_score_that_trials_are_compared_by_is_shown(score, without, expected, tmp_path: Path):
    record = {name: value for name, value in SCORES.items() if name not in without}
    assert shown(tmp_path, record, score=score) == expected


def test_the_score_defaults_to_that_of_the_records(tmp_path: Path):
    assert shown(tmp_path, SCORES) == "loss 0.500, val_miou 41.250"


@pytest.mark.parametrize(("workers", "text"), [(1, "1 worker"), (2, "2 workers")])
def test_the_number_of_workers_is_shown_where_it_may_change(workers, text, tmp_path: Path):
    assert shown(tmp_path, {"loss": 0.5, "workers": workers}) == f"loss 0.500, {text}"


def test_a_bar_keeps_the_last_score(tmp_path: Path, monkeypatch):
    notes: list[str] = []

    class Bar:
        is_bar = True

        def __init__(self, *_, **__): ...

        def update(self, done, note):
            notes.append(note)

        def close(self):
            notes.append("closed")

    monkeypatch.setattr(progress_tail, "Progress", Bar)
    with following(lambda: {"train": tmp_path}, print):
        log(tmp_path, 10, loss=0.5, val_miou=40.0)
        log(tmp_path, 20, loss=0.25)
    assert notes == [", loss 0.500, val_miou 40.000", ", loss 0.250, val_miou 40.000", "closed"]


def test_the_last_records_are_shown_when_the_training_fails(tmp_path: Path):
    lines: list[str] = []

    def fail() -> None:
        with following(lambda: {"train": tmp_path}, lines.append):
            log(tmp_path, 10, loss=1.0)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert lines == ["train 10/40, loss 1.000"]


def test_a_progress_file_at_an_address_is_read_when_it_has_changed(
    bucket_address,  # noqa: F811
    monkeypatch,
):
    folder = to_place(bucket_address.format("run"))
    monkeypatch.setattr(progress_tail, "_REMOTE_POLL_SECONDS", 0.05)
    reads, read_text = [], ObjectPath.read_text
    log(folder, 10, loss=9.0)  # of an earlier call

    def counted(file: ObjectPath) -> str:
        reads.append(file.name)
        return read_text(file)

    monkeypatch.setattr(ObjectPath, "read_text", counted)
    lines: list[str] = []
    with following(lambda: {"train": folder}, lines.append):
        time.sleep(1.0)
        assert reads == [PROGRESS_FILE]
        log(folder, 20, loss=0.5)
    assert lines == ["train 20/40, loss 0.500"]


def test_storage_that_is_away_costs_no_training(bucket_address, monkeypatch):  # noqa: F811
    folder = to_place(bucket_address.format("run"))
    lines: list[str] = []

    def away(_file: ObjectPath) -> None:
        raise OSError("503 Slow Down")

    with following(lambda: {"train": folder}, lines.append):
        with monkeypatch.context() as patch:
            patch.setattr(ObjectPath, "stat", away)
            time.sleep(0.2)
        log(folder, 10, loss=0.5)
    assert lines == ["train 10/40, loss 0.500"]
