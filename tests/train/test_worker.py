"""The run of a Ray Train worker, against a recorded Ray Train."""

import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sfss_ray.storage.places import to_place
from sfss_ray.train import worker
from sfss_ray.train.run_state import STOP_FILE, load_state, read_progress, save_state
from sfss_ray.train.trainer import TrainingJob
from sfss_ray.train.worker import CheckedTorchConfig, RayRun, StopTrainingError, train_on_worker


class RecordedRay:
    """Stands for `ray.train`: records reports, with the state of each checkpoint."""

    def __init__(self, rank: int, checkpoint_folder=None):
        self.rank, self.checkpoint_folder = rank, checkpoint_folder
        self.reports: list[tuple[dict, dict | None]] = []
        self.torch = SimpleNamespace(get_device=lambda: torch.device("cpu"))
        self.Checkpoint = SimpleNamespace(from_directory=load_from)

    def get_context(self):
        rank = self.rank
        return SimpleNamespace(get_world_rank=lambda: rank, get_world_size=lambda: 2)

    def get_checkpoint(self):
        if self.checkpoint_folder is None:
            return None

        @contextmanager
        def as_directory():
            yield str(self.checkpoint_folder)

        return SimpleNamespace(as_directory=as_directory)

    def report(self, metrics, checkpoint=None):
        self.reports.append((metrics, checkpoint))


def load_from(folder):
    return load_state(Path(folder))


def use(monkeypatch, ray_train: RecordedRay) -> RecordedRay:
    monkeypatch.setattr(worker, "ray", SimpleNamespace(train=ray_train))
    return ray_train


def test_rank_zero_reports_with_a_checkpoint(monkeypatch, tmp_path):
    recorded = use(monkeypatch, RecordedRay(0))
    run = RayRun(tmp_path)
    assert (run.rank, run.world) == (0, 2)
    run.report({"loss": 1.0}, lambda: {"step": 3})
    assert recorded.reports == [({"loss": 1.0}, {"step": 3})]


def test_other_ranks_report_metrics_and_build_no_state(monkeypatch, tmp_path):
    recorded = use(monkeypatch, RecordedRay(1))

    def state():
        raise AssertionError("only rank 0 saves")

    RayRun(tmp_path).report({"loss": 1.0}, state)
    assert recorded.reports == [({"loss": 1.0}, None)]


def test_a_run_resumes_from_rays_newest_checkpoint(monkeypatch, tmp_path):
    use(monkeypatch, RecordedRay(0))
    assert RayRun(tmp_path).resume_state() is None
    save_state(tmp_path / "checkpoint", {"step": 4})
    use(monkeypatch, RecordedRay(0, tmp_path / "checkpoint"))
    assert RayRun(tmp_path).resume_state() == {"step": 4}


def test_progress_is_written_to_the_folder(monkeypatch, tmp_path):
    use(monkeypatch, RecordedRay(0))
    RayRun(tmp_path / "train").log({"step": 1})
    assert read_progress(tmp_path / "train") == [{"step": 1}]
    RayRun(tmp_path / "train").save("statistics.pt", {"step": 1})
    assert torch.load(tmp_path / "train" / "statistics.pt", weights_only=True) == {"step": 1}


def test_progress_has_the_number_of_workers_where_it_may_change(monkeypatch, tmp_path):
    use(monkeypatch, RecordedRay(0))
    RayRun(tmp_path, is_elastic=True).log({"step": 1})
    assert read_progress(tmp_path) == [{"step": 1, "workers": 2}]


@pytest.mark.parametrize("rank", [0, 1])
def test_the_job_runs_with_its_watch_on_rank_zero_alone(monkeypatch, tmp_path, rank):
    use(monkeypatch, RecordedRay(rank))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads, calls = [], []
    monkeypatch.setattr(worker, "use_threads", threads.append)
    job = TrainingJob(lambda *arguments: calls.append(arguments), "task", "watch")
    payload = {"job": job, "folder": tmp_path, "threads": 2.0, "device": "cpu"}
    payload |= {"may_stop": False, "is_elastic": False}
    train_on_worker(payload)
    ((task, run, watch),) = calls
    assert task == "task"
    assert (run.rank, run.folder) == (rank, tmp_path)
    assert watch == ("watch" if rank == 0 else None)
    assert threads == [2.0]


def test_gpus_are_checked_before_the_workers_are_joined(monkeypatch):
    steps = []
    backend_class = CheckedTorchConfig().backend_cls
    ray_backend = backend_class.__mro__[1]
    monkeypatch.setattr(ray_backend, "on_start", lambda self, group, config: steps.append("join"))
    group = SimpleNamespace(execute=lambda function, *words: steps.append((function, *words)))
    backend_class().on_start(group, CheckedTorchConfig())
    assert steps == [(worker.worker_device, "cuda"), "join"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_run_has_the_device_that_ray_assigned_or_the_cpu(device, monkeypatch, tmp_path):
    recorded = use(monkeypatch, RecordedRay(0))
    recorded.torch = SimpleNamespace(get_device=lambda: torch.device("cuda:1"))
    expected = torch.device("cuda:1" if device == "cuda" else "cpu")
    assert RayRun(tmp_path, device).device == expected


@pytest.mark.parametrize(
    ("info", "may_stop", "expected"),
    [(None, False, False), ("node", False, True), ("node", True, False)],
)
def test_a_notice_of_rays_is_heeded_outside_a_search(
    monkeypatch, tmp_path, info, may_stop, expected
):
    recorded: Any = use(monkeypatch, RecordedRay(0))
    recorded.get_preemption_info = lambda: info
    assert RayRun(tmp_path, may_stop=may_stop).is_preempted() is expected


@pytest.mark.parametrize("rank", [0, 1])
def test_a_search_ends_a_training_on_all_ranks(monkeypatch, tmp_path, rank):
    recorded: Any = use(monkeypatch, RecordedRay(rank))
    sent: list = []

    def broadcast(flag):
        sent.append(flag)
        return True

    recorded.collective = SimpleNamespace(broadcast_from_rank_zero=broadcast)
    (tmp_path / STOP_FILE).write_text("")
    with pytest.raises(StopTrainingError):
        RayRun(tmp_path, may_stop=True).report({"loss": 1.0}, lambda: {"step": 3})
    assert recorded.reports[0][0] == {"loss": 1.0}
    assert sent == [True if rank == 0 else None]
    RayRun(tmp_path).report({"loss": 1.0}, lambda: {"step": 3})


def test_a_checkpoint_for_an_address_is_uploaded_behind_the_training(monkeypatch, tmp_path):
    recorded: Any = use(monkeypatch, RecordedRay(0))
    options: list[dict] = []

    def report(metrics, checkpoint=None, **how):
        options.append(how)
        recorded.reports.append((metrics, checkpoint))

    recorded.report = report
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    recorded.CheckpointUploadMode = SimpleNamespace(ASYNC="async")
    RayRun(to_place("s3://fleet/run")).report({"loss": 1.0}, lambda: {"step": 3})
    assert recorded.reports == [({"loss": 1.0}, {"step": 3})]
    (how,) = options
    assert how == {"checkpoint_upload_mode": "async", "delete_local_checkpoint_after_upload": True}
