"""One run of a row: from which networks it starts, and what decides its result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sfss_ray.models.model_file import load_model


@pytest.fixture
def pair(experiment, tmp_path):
    return experiment("domain_pairs").streets(tmp_path, 4)


@pytest.fixture
def make_job(experiment):
    runs = experiment("ablation_run")
    return lambda pair: runs.Job(pair, runs.CEILING, 0, "cpu")


def test_a_ceiling_that_keeps_statistics_starts_from_those_of_the_adaptations(
    experiment, pair, make_job
):
    runs = experiment("ablation_run")
    job = make_job(replace(pair, ceiling_keeps_statistics=True))
    expected = runs.with_target_statistics(job).state_dict()
    start = load_model(runs.ceiling_start(job)).network.state_dict()
    assert all(torch.equal(start[name], value) for name, value in expected.items())
    source = load_model(pair.source_model).network.state_dict()
    changed = {name for name, value in source.items() if not torch.equal(start[name], value)}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed
    assert all(name.endswith(statistics) for name in changed)


def test_another_ceiling_starts_from_the_source_model(experiment, pair, make_job):
    assert experiment("ablation_run").ceiling_start(make_job(pair)) == pair.source_model


def test_the_statistics_of_a_ceiling_decide_its_result(pair, make_job):
    plain = make_job(pair).identity
    kept = make_job(replace(pair, ceiling_keeps_statistics=True)).identity
    assert kept != plain
    assert {**plain, **kept} == kept


def test_with_other_steps_the_ceiling_keeps_its_multiple(experiment, pair):
    config = experiment("domain_pairs").override(pair.config, {"pretrain.num_steps": 1500})
    shorter = experiment("ablation").with_steps(replace(pair, config=config), 10)
    assert shorter.config.train.num_steps == 10
    assert shorter.config.pretrain.num_steps == 30
    assert shorter.options == "--pair streets --steps 10"
