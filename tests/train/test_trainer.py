"""Errors and resources of Ray Train, without a cluster."""

import errno
import pickle

import pytest
import ray.train

from sfss_ray.config import ComputeConfig
from sfss_ray.errors import TrainingError
from sfss_ray.train.adaptation import adapt_student
from sfss_ray.train.trainer import (
    TrainingJob,
    _fit_or_explain,
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


def test_a_job_can_be_sent_to_workers():
    job = TrainingJob(adapt_student, {"task": 1})
    assert pickle.loads(pickle.dumps(job)) == job
