"""Which numbers and files of a run reach a tracker, and that a failing one never ends the run."""

from dataclasses import replace
from pathlib import Path

import pytest
from object_storage import bucket_address, s3_options  # noqa: F401
from report_samples import CLASSES, tune_report
from tracked_runs import Recorder

from sfss_ray.config import Config
from sfss_ray.masks.summary import MaskSummary
from sfss_ray.report.report_record import WORSE, Verdict
from sfss_ray.storage.files import write_text
from sfss_ray.storage.places import to_place
from sfss_ray.tracking.run_tracking import RunTracking, track_run
from sfss_ray.train.progress_tail import following
from sfss_ray.train.run_state import ProgressLog


@pytest.fixture
def lines() -> list[str]:
    return []


def test_masks_are_counted(lines):
    recorder = Recorder()
    summary = MaskSummary("m", "small_sam", "the shipped SAM", 4, 10, 4, 2.5, {"a": "truncated"})
    RunTracking([recorder], lines.append).log_masks(summary)
    assert recorder.numbers() == {
        "masks/images": (4, 0),
        "masks/masks": (10, 0),
        "masks/masks_per_image": (2.5, 0),
        "masks/images_without_masks": (1, 0),
        "masks/seconds": (2.5, 0),
    }
    assert ("log_text", "masks", "small_sam: the shipped SAM") in recorder.calls


def test_a_progress_record_has_its_name_and_step(lines):
    recorder = Recorder()
    record = {"step": 20, "num_steps": 40, "loss": 0.5, "learning_rate": 1e-3, "device": "cpu"}
    record |= {"val_miou": float("nan"), "loss_ins": None}
    RunTracking([recorder], lines.append).log_record("trial-ab", record)
    assert recorder.numbers() == {
        "trial-ab/loss": (0.5, 20),
        "trial-ab/learning_rate": (1e-3, 20),
    }


def test_a_record_without_numbers_sends_nothing(lines):
    recorder = Recorder()
    RunTracking([recorder], lines.append).log_record("train", {"step": 1, "num_steps": 4})
    assert recorder.calls == []


def test_trials_are_logged_by_their_number(lines):
    recorder = Recorder()
    RunTracking([recorder], lines.append).log_trials(tune_report().trials)
    metrics = [call[1:] for call in recorder.calls if call[0] == "log_metrics"]
    assert [step for _, step in metrics] == [1, 2, 3, 4, 5]
    assert metrics[2][0] == {
        "trials/temperature": 0.5,
        "trials/contrast_weight": 0.1,
        "trials/ema_momentum": 0.999,
        "trials/steps": 400,
        "trials/miou": 46.0,
        "trials/score": 1.3,
        "trials/collapsed": 0,
    }
    assert "trials/score" not in metrics[4][0]
    assert ("log_text", "trial 5", "failed: the loss became NaN") in recorder.calls


def test_the_report_is_sent_with_scores_page_and_pictures(lines, tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    for name in ("report.json", "report.html", "pictures/02_b.png", "pictures/01_a.png"):
        (tmp_path / name).write_text("")
    recorder = Recorder()
    RunTracking([recorder], lines.append).log_report(tune_report(), tmp_path)
    numbers = recorder.numbers()
    assert numbers["report/source-only/miou"] == (38.1, 10)  # the last step of the curve
    assert numbers["report/adapted/miou"] == (51.2, 10)
    assert numbers[f"report/adapted/iou/{CLASSES[0]}"] == (80.4, 10)
    assert f"report/adapted/iou/{CLASSES[2]}" not in numbers  # absent from the labels
    artifacts = [call[1] for call in recorder.calls if call[0] == "log_artifact"]
    assert [path.name for path in artifacts] == [
        "report.json",
        "report.html",
        "01_a.png",
        "02_b.png",
    ]
    (table,) = [call[2] for call in recorder.calls if call[:2] == ("log_text", "results")]
    assert "best: trial 3" in table
    assert not [call for call in recorder.calls if call[1] == "verdict"]


def test_a_report_at_an_address_is_sent_from_copies(lines, bucket_address):  # noqa: F811
    folder = to_place(bucket_address.format("run"))
    for name in ("report.json", "report.html", "pictures/01_a.png"):
        write_text(folder / name, f"content of {name}")
    contents: dict[str, str] = {}

    class Reader(Recorder):
        def log_artifact(self, path: Path) -> None:
            contents[path.name] = path.read_text()

    RunTracking([Reader()], lines.append).log_report(tune_report(), folder)
    assert contents == {
        "report.json": "content of report.json",
        "report.html": "content of report.html",
        "01_a.png": "content of pictures/01_a.png",
    }
    assert lines == []


def test_the_verdict_is_sent(lines, tmp_path: Path):
    recorder = Recorder()
    report = replace(tune_report(), verdict=Verdict(WORSE, "With labels, mIoU falls."))
    RunTracking([recorder], lines.append).log_report(report, tmp_path)
    expected = "verdict: worse: keep the source model. With labels, mIoU falls."
    assert ("log_text", "verdict", expected) in recorder.calls


def test_a_tracker_that_raises_is_reported_once_and_dropped(lines):
    failing, sound = Recorder("log_metrics"), Recorder()
    tracking = RunTracking([failing, sound], lines.append)
    for step in (1, 2, 3):
        tracking.log_record("train", {"step": step, "loss": 0.1})
    tracking.finish(failed=False)
    assert len(lines) == 1
    assert lines[0].startswith("Recorder failed")
    assert lines[0].endswith("OSError: log_metrics has no connection")
    assert failing.methods() == ["log_metrics"]
    assert sound.methods() == ["log_metrics"] * 3 + ["finish"]


@pytest.mark.parametrize("method", ["start", "finish"])
def test_failing_to_start_or_finish_does_not_end_the_run(method, lines, tmp_path):
    with track_run([Recorder(method)], tmp_path, Config(), lines.append) as tracking:
        tracking.log_record("train", {"step": 1, "loss": 0.1})
    assert len(lines) == 1


def test_ctrl_c_in_a_tracker_ends_the_run(lines):
    class Interrupted(Recorder):
        def log_metrics(self, metrics, step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RunTracking([Interrupted()], lines.append).log_record("train", {"step": 1, "loss": 1.0})


def test_a_run_is_named_after_its_folder_and_finished(lines, tmp_path):
    recorder = Recorder()
    with track_run([recorder], tmp_path / "night", Config(), lines.append):
        pass
    method, run_name, config = recorder.calls[0]
    assert (method, run_name) == ("start", "night")
    assert config["train.num_steps"] == Config().train.num_steps
    assert recorder.calls[-1] == ("finish", False)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_run_that_raises_is_finished_as_failed(error, lines, tmp_path):
    recorder = Recorder()
    with pytest.raises(error), track_run([recorder], tmp_path, Config(), lines.append):
        raise error
    assert recorder.calls[-1] == ("finish", True)


def test_records_that_are_added_to_progress_files_are_logged(lines, tmp_path):
    """Those of an earlier call were logged by that call."""
    recorder = Recorder()
    tracking = RunTracking([recorder], lines.append)
    ProgressLog(tmp_path).append({"step": 1, "num_steps": 3, "loss": 0.75})
    with following(lambda: {"train": tmp_path}, lines.append, on_record=tracking.log_record):
        for step, loss in ((2, 0.5), (3, 0.25)):
            ProgressLog(tmp_path).append({"step": step, "num_steps": 3, "loss": loss})
    metrics = [call[1:] for call in recorder.calls]
    assert metrics == [({"train/loss": 0.5}, 2), ({"train/loss": 0.25}, 3)]
