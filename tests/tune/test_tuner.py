"""Settings of Ray Tune, and how its results become trials; no cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray.tune.schedulers
import ray.tune.search.sample

from sfss_ray.config import Config, override
from sfss_ray.config.space import parse_space
from sfss_ray.errors import ClusterError
from sfss_ray.runtime.resources import TRIAL_DRIVER_CPUS, Resources
from sfss_ray.tune import tuner
from sfss_ray.tune.trial import SearchPlan, trial_folder
from sfss_ray.tune.trial_training import WorkerTrialsScheduler
from sfss_ray.tune.tuner import max_restarts


@pytest.mark.parametrize(
    ("max_failures", "workers", "allowed"), [(2, 1, 2), (0, 1, 0), (-1, 1, 10), (2, 2, 0)]
)
def test_a_trial_is_restarted_a_limited_number_of_times(max_failures, workers, allowed):
    """A trial whose loss is NaN fails each time; Ray Train restarts trials of several workers."""
    compute = {"compute.max_failures": max_failures, "compute.num_workers": workers}
    assert max_restarts(override(Config(), compute)) == allowed


def plan(tmp_path: Path, **changes: Any) -> SearchPlan:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    prepared: Any = None
    return SearchPlan(prepared, tmp_path, override(Config(), named), "entropy")


def test_a_search_can_be_restored_by_the_name_of_its_trainable():
    """Tune stores the name, and refuses to restore a search under another one."""
    assert tuner._trial.__name__ == "_trial"


@pytest.mark.parametrize(
    ("workers", "kind"), [(1, ray.tune.schedulers.ASHAScheduler), (2, WorkerTrialsScheduler)]
)
def test_weak_trials_are_stopped_after_the_ramp(tmp_path, workers, kind):
    changes = {"train__num_steps": 100, "train__evaluate_every": 10}
    scheduler = tuner._scheduler(plan(tmp_path, compute__num_workers=workers, **changes))
    assert type(scheduler) is kind
    assert scheduler._time_attr == "step"
    assert scheduler._max_t == 101
    (bracket,) = scheduler._brackets
    assert min(milestone for milestone, _ in bracket._rungs) == 30


def test_no_trial_is_stopped_without_early_stopping(tmp_path):
    scheduler = tuner._scheduler(plan(tmp_path, tune__early_stopping=False))
    assert type(scheduler) is ray.tune.schedulers.FIFOScheduler


@pytest.mark.parametrize(
    ("workers", "device", "resources"),
    [
        (1, "cpu", {"CPU": 2.0}),
        (1, "cuda", {"CPU": 2.0, "GPU": 1.0}),
        (3, "cuda", {"CPU": TRIAL_DRIVER_CPUS}),
    ],
)
def test_a_driver_of_several_workers_reserves_almost_nothing(workers, device, resources):
    compute = {"cpus_per_worker": 2.0, "num_workers": workers, "device": device}
    config = override(Config(), {f"compute.{name}": value for name, value in compute.items()})
    assert tuner._trial_resources(config) == resources


def test_as_many_trials_run_at_a_time_as_fit():
    resources = Resources(8.0, 0, ((8.0, 0.0),))
    base = {"compute.device": "cpu", "compute.cpus_per_worker": 2.0}
    assert tuner._concurrent_trials(override(Config(), base), resources) == 4
    two = override(Config(), base | {"compute.concurrent_trials": 2})
    assert tuner._concurrent_trials(two, resources) == 2
    with pytest.raises(ClusterError):
        tuner._concurrent_trials(
            override(Config(), base | {"compute.concurrent_trials": 5}), resources
        )


def test_results_become_trials(tmp_path):
    point = {
        "train.loss.temperature": 0.2,
        "train.loss.contrast_weight": 0.5,
        "gap.train.ema_momentum": 0.25,
    }
    values = {
        "train.loss.temperature": 0.2,
        "train.loss.contrast_weight": 0.5,
        "train.ema_momentum": 0.75,
    }
    results = [
        SimpleNamespace(
            config=point, metrics={"step": 5, "score": 1.0, "trial_id": "x"}, error=None
        ),
        SimpleNamespace(config=point, metrics={"step": 3}, error=None),
        SimpleNamespace(config=point, metrics=None, error=RuntimeError("first\nthe loss is nan")),
    ]
    search = plan(tmp_path, train__num_steps=5)
    trials = tuner._collect(search, results)
    assert [trial.status for trial in trials] == ["finished", "stopped early", "failed"]
    assert [trial.name for trial in trials] == ["trial 1", "trial 2", "trial 3"]
    assert trials[0].metrics == {"step": 5, "score": 1.0}
    assert trials[2].error == "the loss is nan"
    assert trials[0].values == values
    assert trials[0].folder == trial_folder(tmp_path, values)


def test_progress_of_the_trials_is_found_by_their_names(tmp_path):
    for name in ("trial-b", "trial-a", "ray"):
        (tmp_path / name).mkdir()
    assert tuner._progress_folders(plan(tmp_path)) == {
        "trial-a": tmp_path / "trial-a",
        "trial-b": tmp_path / "trial-b",
    }


def test_dimensions_become_distributions_of_tune():
    float_range, log_range, gap, whole, words = parse_space(
        [
            "train.loss.vote_weight=0.2..1",
            "train.optim.learning_rate=log:1e-5..1e-3",
            "train.ema_momentum=gap:0.99..0.9999",
            "train.pairs.negatives=log:64..128",
            "train.batch_norm=auto,frozen",
        ]
    )
    draws = {d: [tuner._domain(d).sample() for _ in range(300)] for d in (whole, words, gap)}
    assert isinstance(tuner._domain(float_range), ray.tune.search.sample.Float)
    assert (tuner._domain(log_range).lower, tuner._domain(log_range).upper) == (1e-5, 1e-3)
    assert set(draws[words]) == {"auto", "frozen"}
    assert all(isinstance(n, (int, np.integer)) and 64 <= n <= 128 for n in draws[whole])
    assert 1e-4 <= min(draws[gap]) < 1e-3 < max(draws[gap]) <= 1e-2


def test_a_trial_is_placed_by_the_labels_and_the_type_of_its_gpu():
    compute = {"device": "cuda", "gpus_per_worker": 0.5, "accelerator_type": "A100"}
    compute |= {"label_selector": "zone=!a"}
    config = override(Config(), {f"compute.{name}": value for name, value in compute.items()})
    request = tuner._trial_request(config)
    assert request.bundles == [{"CPU": 1.0, "GPU": 0.5, "accelerator_type:A100": 0.001}]
    assert request._bound.arguments["bundle_label_selector"] == [{"zone": "!a"}]
    anywhere = override(config, {"compute.label_selector": ""})
    assert tuner._trial_request(anywhere) == tuner._trial_resources(anywhere)
    several = override(config, {"compute.num_workers": 2})
    assert tuner._trial_request(several) == {"CPU": TRIAL_DRIVER_CPUS}


@pytest.mark.parametrize(("shown", "verbose"), [(False, 0), (True, 1)])
def test_the_tables_of_ray_tune_are_shown_on_request(shown, verbose, tmp_path, monkeypatch):
    settings: dict[str, Any] = {}
    monkeypatch.setattr(ray.tune, "Tuner", RecordedTuner.into(settings))
    tuner._build_tuner(plan(tmp_path, compute__ray_progress=shown), 1)
    assert settings["run_config"].verbose == verbose


class RecordedTuner:
    """Stands for Ray's Tuner."""

    @staticmethod
    def into(settings: dict[str, Any]) -> Any:
        def build(trainable, **keywords):
            settings.update(keywords)

        build.can_restore = lambda path, storage_filesystem: False
        return build
