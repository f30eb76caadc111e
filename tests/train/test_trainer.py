"""Errors and resources of Ray Train, without a cluster."""

import errno
import os
import pickle

import pytest
import ray.train
from ray.train.v2._internal.constants import get_env_vars_to_propagate

from sfss_ray.config import ComputeConfig
from sfss_ray.errors import TrainingError
from sfss_ray.train.adaptation import adapt_student
from sfss_ray.train.trainer import (
    TrainingJob,
    _build_trainer,
    _fit_or_explain,
    _short_start_timeout,
    _worker_resources,
    innermost_cause,
)


class RayError(Exception):
    """An error with Ray's attribute `cause`."""

    def __init__(self, text: str, cause: Exception | None = None):
        super().__init__(text)
        self.cause = cause


class FailingTrainer:
    """A trainer whose `fit` raises what Ray Train raises."""

    def __init__(self, failures: dict[int, Exception]):
        self.failures = failures

    def fit(self):
        error = ray.train.TrainingFailedError()
        error.worker_failures = self.failures
        raise error


def test_the_innermost_cause_is_found_through_ray_and_python():
    first = ValueError("the loss is nan")
    python = RuntimeError("in a thread")
    python.__cause__ = first
    assert innermost_cause(RayError("task failed", RayError("actor died", python))) is first
    assert innermost_cause(first) is first


def test_a_failed_training_names_its_innermost_cause_in_one_line():
    cause = TrainingError("details\nthe loss is nan at step 3")
    trainer = FailingTrainer({1: RayError("Traceback ...", cause)})
    with pytest.raises(TrainingError, match=r"^training stopped: the loss is nan at step 3$"):
        _fit_or_explain(trainer)


def test_a_full_disk_gets_advice():
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(TrainingError, match=r"free some space and run again: training resumes"):
        _fit_or_explain(FailingTrainer({0: full}))


def test_an_error_without_text_is_named():
    with pytest.raises(TrainingError, match=r"training stopped: KeyboardInterrupt\(\)"):
        _fit_or_explain(FailingTrainer({0: RayError("", KeyboardInterrupt())}))  # pyright: ignore


def test_other_errors_pass():
    class Trainer:
        def fit(self):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _fit_or_explain(Trainer())


@pytest.mark.parametrize(
    ("device", "resources"), [("cpu", {"CPU": 2.0}), ("cuda", {"CPU": 2.0, "GPU": 1.0})]
)
def test_a_worker_reserves_its_cpus_and_on_gpus_one_gpu(device, resources):
    assert _worker_resources(ComputeConfig(cpus_per_worker=2.0), device) == resources


@pytest.mark.parametrize(
    ("workers", "ray_workers"), [(2, 2), ("2-2", 2), ("1-4", (1, 4)), ("3-4", (3, 4))]
)
def test_ray_may_change_the_number_of_workers_within_a_range(workers, ray_workers, tmp_path):
    compute = ComputeConfig(num_workers=workers, resize_interval_s=7.0)
    job = TrainingJob(adapt_student, {"task": 1})
    trainer = _build_trainer(job, tmp_path, compute, "cpu", None)
    scaling = trainer.scaling_config
    assert scaling.num_workers == ray_workers
    assert scaling.elasticity_enabled == (workers in ("1-4", "3-4"))
    assert scaling.elastic_resize_monitor_interval_s == 7.0
    assert trainer.train_loop_config["is_elastic"] == scaling.elasticity_enabled


@pytest.mark.parametrize(
    ("workers", "value", "expected"), [("1-4", None, "10"), ("1-4", "30", "30"), (4, None, None)]
)
def test_ray_soon_tries_another_number_of_workers(workers, value, expected, monkeypatch):
    name = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
    monkeypatch.delenv(name, raising=False)
    if value is not None:
        monkeypatch.setenv(name, value)
    with _short_start_timeout(ComputeConfig(num_workers=workers)):
        assert os.environ.get(name) == expected
        assert get_env_vars_to_propagate().get(name) == expected
    assert os.environ.get(name) == value


def test_a_job_can_be_sent_to_workers():
    job = TrainingJob(adapt_student, {"task": 1})
    assert pickle.loads(pickle.dumps(job)) == job
