"""One trial in this process: reports, resuming, failures."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import ray.tune
from train_samples import adaptation_task, sharp_source, small_config, write_dataset

from sfss_ray.config import override
from sfss_ray.errors import TrainingError
from sfss_ray.models.model_file import load_model
from sfss_ray.models.source import open_source
from sfss_ray.train.run_state import STOP_FILE, load_state
from sfss_ray.train.training_inputs import Prepared
from sfss_ray.tune import trial_training
from sfss_ray.tune.search_space import knob_values
from sfss_ray.tune.trial import SearchPlan, trial_folder
from sfss_ray.tune.trial_training import WorkerTrialsScheduler, train_trial

POINT = {
    "train.loss.temperature": 0.2,
    "train.loss.contrast_weight": 0.3,
    "gap.train.ema_momentum": 0.01,
}
CONFIG = override(
    small_config(num_steps=2, evaluate_every=1),
    {"compute.device": "cpu", "compute.cpus_per_worker": 1.0},
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Prepared:
    root = write_dataset(tmp_path_factory.mktemp("trial"))
    source = sharp_source(root / "source.pt")
    images = adaptation_task(root, source, CONFIG).images
    return Prepared(open_source(source), images[:4], images[4:], (), str(root / "masks"))


@pytest.fixture
def reports(monkeypatch) -> list[dict]:
    reports: list[dict] = []
    monkeypatch.setattr(ray.tune, "report", reports.append)
    return reports


def folder_of(tmp_path):
    return trial_folder(tmp_path, knob_values(POINT))


def test_a_trial_reports_each_evaluation_and_saves_its_student(prepared, tmp_path, reports):
    train_trial(POINT, SearchPlan(prepared, tmp_path, CONFIG, "entropy"))
    assert [metrics["step"] for metrics in reports] == [1, 2]
    assert all("guarded_score" in metrics for metrics in reports)
    folder = folder_of(tmp_path)
    assert json.loads((folder / "values.json").read_text()) == knob_values(POINT)
    assert load_model(folder / "student.pt").facts["steps"] == 2


def test_a_trial_keeps_its_last_student(prepared, tmp_path, reports):
    """Its score is that of its last evaluation."""
    best = override(CONFIG, {"train.keep": "best"})
    train_trial(POINT, SearchPlan(prepared, tmp_path, best, "entropy"))
    assert (
        load_model(folder_of(tmp_path) / "student.pt").facts["network_kept"].endswith("last step")
    )
    assert "best" not in load_state(folder_of(tmp_path))


def test_a_trial_that_was_killed_before_its_last_report_reports_it(prepared, tmp_path, reports):
    plan = SearchPlan(prepared, tmp_path, CONFIG, "entropy")
    train_trial(POINT, plan)
    last = reports[-1]
    reports.clear()
    train_trial(POINT, plan)
    assert reports == [last]


def test_the_student_is_saved_before_tune_may_stop_the_trial(
    prepared, tmp_path, reports, monkeypatch
):
    class Stopped(Exception):
        """Stands for the end of a trial that Tune stops."""

    def stop_at_the_end(metrics):
        if metrics["step"] == 2:
            raise Stopped

    monkeypatch.setattr(ray.tune, "report", stop_at_the_end)
    with pytest.raises(Stopped):
        train_trial(POINT, SearchPlan(prepared, tmp_path, CONFIG, "entropy"))
    assert (folder_of(tmp_path) / "student.pt").exists()


def test_a_failed_trial_is_not_trained_again(prepared, tmp_path, reports, monkeypatch):
    trainings = []

    def diverge(task, run, watch):
        trainings.append(task)
        raise TrainingError("the loss is nan at step 1")

    monkeypatch.setattr(trial_training, "adapt_student", diverge)
    plan = SearchPlan(prepared, tmp_path, CONFIG, "entropy")
    for _ in range(2):
        with pytest.raises(TrainingError, match="the loss is nan at step 1"):
            train_trial(POINT, plan)
    assert len(trainings) == 1
    assert trainings[0].config.train.loss.temperature == 0.2
    assert reports == []


def test_several_workers_train_on_ray_train(prepared, tmp_path, reports, monkeypatch):
    """The workers are replaced; their last record is reported once more, as Tune may not have it."""
    calls = []

    def fit(job, folder, config, progress, callbacks, **_):
        calls.append((folder, len(callbacks)))
        run = trial_training.LocalRun(folder / "train")
        job.train(job.task, run, job.watch)
        return trial_training.load_state(run.folder)

    monkeypatch.setattr(trial_training, "fit", fit)
    monkeypatch.setattr(trial_training, "TuneReportCallback", object)
    config = override(CONFIG, {"compute.num_workers": 2})
    train_trial(POINT, SearchPlan(prepared, tmp_path, config, "entropy"))
    assert calls == [(folder_of(tmp_path), 1)]
    assert [metrics["step"] for metrics in reports] == [2]
    assert (folder_of(tmp_path) / "student.pt").exists()


def test_workers_of_a_weak_trial_are_asked_to_end(tmp_path):
    """ASHA keeps the better half. Tune itself is told to go on: the trial ends by itself."""
    scheduler = WorkerTrialsScheduler(
        tmp_path,
        override(CONFIG, {"compute.num_workers": 2}),
        metric="score",
        mode="max",
        time_attr="step",
        max_t=10,
        grace_period=1,
        reduction_factor=2,
    )
    points = [POINT | {"train.loss.temperature": value} for value in (0.1, 0.2)]
    trials = [SimpleNamespace(trial_id=str(i), config=p) for i, p in enumerate(points)]
    for trial, score in zip(trials, (1.0, 0.5), strict=True):
        scheduler.on_trial_add(None, trial)
        decision = scheduler.on_trial_result(None, trial, {"step": 1, "score": score})
        assert decision == scheduler.CONTINUE
    asked = [
        (trial_folder(tmp_path, knob_values(point)) / "train" / STOP_FILE).exists()
        for point in points
    ]
    assert asked == [False, True]
