"""Runs in MLflow's local store, read back with its client."""

import pytest
from tracked_runs import CONFIG, LOSSES, send_run, write_files

from sfss_ray.tracking.mlflow_tracker import MAX_PARAM_LENGTH, MlflowTracker

mlflow = pytest.importorskip(
    "mlflow", reason="mlflow is not installed: pip install 'sfss-ray[mlflow]'"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One local store for all tests, because setting it up takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # artifacts go below the working folder
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        yield mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture(scope="module")
def sent(store, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    tracker = MlflowTracker(root / "tracking")
    send_run(tracker, write_files(root))
    return store.get_run(tracker.run_id)


def test_a_run_has_its_name_params_and_status(store, sent):
    assert sent.info.run_name == "night"
    assert sent.info.status == "FINISHED"
    assert sent.data.params == {name: str(value) for name, value in CONFIG.items()}
    assert store.get_experiment(sent.info.experiment_id).name == "sfss_ray"


def test_metrics_have_their_steps(store, sent):
    history = store.get_metric_history(sent.info.run_id, "train/loss")
    assert {metric.step: metric.value for metric in history} == LOSSES
    (late,) = store.get_metric_history(sent.info.run_id, "trial-b/loss")
    assert (late.step, late.value) == (10, 1.5)


def test_files_and_texts_are_artifacts(store, sent):
    names = {artifact.path for artifact in store.list_artifacts(sent.info.run_id)}
    assert names == {"report.html", "report.json", "results.txt", "pictures"}
    (picture,) = store.list_artifacts(sent.info.run_id, "pictures")
    assert picture.path == "pictures/01_a.png"


def test_a_resumed_run_continues_the_same_run(store, tmp_path):
    first, second = MlflowTracker(tmp_path), MlflowTracker(tmp_path)
    first.start("night", CONFIG)
    first.log_metrics({"train/loss": 0.5}, 1)
    first.finish(failed=True)
    assert store.get_run(first.run_id).info.status == "FAILED"
    second.start("night", {**CONFIG, "compute.num_workers": 2})
    second.log_metrics({"train/loss": 0.25}, 2)
    assert second.run_id == first.run_id
    assert store.get_run(first.run_id).info.status == "RUNNING"
    second.finish(failed=False)
    assert len(store.get_metric_history(first.run_id, "train/loss")) == 2


def test_a_run_that_the_server_lacks_is_created_anew(store, tmp_path):
    (tmp_path / "mlflow_run_id").write_text("0" * 32)
    tracker = MlflowTracker(tmp_path)
    tracker.start("night", {})
    assert tracker.run_id != "0" * 32
    assert (tmp_path / "mlflow_run_id").read_text() == tracker.run_id


def test_many_and_long_params_and_odd_names_are_accepted(store, tmp_path):
    tracker = MlflowTracker(tmp_path)
    tracker.start("night", {f"knob.{k}": "x" * 700 for k in range(230)})
    tracker.log_metrics({"report/adapted/iou/Straße (nass), 道路": 1.0}, 0)
    data = store.get_run(tracker.run_id).data
    assert len(data.params) == 230
    assert {len(value) for value in data.params.values()} == {MAX_PARAM_LENGTH}
    assert list(data.metrics) == ["report/adapted/iou/Stra_e _nass__ __"]


def test_the_experiment_can_be_named(store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "dusk")
    tracker = MlflowTracker(tmp_path)
    tracker.start("night", {})
    run = store.get_run(tracker.run_id)
    assert store.get_experiment(run.info.experiment_id).name == "dusk"
