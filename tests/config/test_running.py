"""Knobs of evaluation, search and machines, and their ranges."""

from __future__ import annotations

import json

import pytest
from knob_cases import assert_refused, cases

from sfss_ray.config import (
    ComputeConfig,
    Config,
    EvaluationConfig,
    flatten,
    load_config,
    override,
    to_yaml,
)
from sfss_ray.errors import ConfigError

OUT_OF_RANGE = {
    "evaluation.max_size": [31],
    "evaluation.held_out_share": [0.6],
    "evaluation.pictures": [101],
    "tune.num_trials": [0],
    "tune.reduction_factor": [1],
    "tune.score": ["accuracy"],
    "compute.device": ["tpu"],
    "compute.num_workers": [0, "0-2", "3-2", "1-", [2, 1]],
    "compute.resize_interval_s": [0.0],
    "compute.mask_actors": [-1, "4", "4-2", "0-2"],
    "compute.predict_actors": [-1, "two"],
    "compute.cpus_per_worker": [0.0],
    "compute.max_failures": [-2],
    "compute.wait_for_nodes_s": [-1.0],
    "compute.gpus_per_worker": [0.0, 1.5],
    "compute.gpus_per_actor": [0.0, 2.0],
}


@pytest.mark.parametrize(("name", "value"), cases(OUT_OF_RANGE))
def test_values_out_of_range_are_refused(name, value):
    assert_refused(name, value)


@pytest.mark.parametrize("stride", [(513, 1), (1, 513), (0, 1)])
def test_windows_cover_every_pixel(stride):
    with pytest.raises(ConfigError, match=r"^stride is .*: allowed is \(down, right\), each 1 "):
        EvaluationConfig(stride=stride)
    assert EvaluationConfig(stride=(512, 512)).stride == (512, 512)


def test_one_or_more_zooms_are_allowed():
    assert EvaluationConfig(scales=(0.5, 1, 2)).scales == (0.5, 1, 2)
    for scales in ((), (0.05,), (1.0, 5.0), 1.0):
        with pytest.raises(ConfigError, match=r"^scales is .*: allowed is one or more zooms in"):
            EvaluationConfig(scales=scales)


@pytest.mark.parametrize(
    ("value", "smallest", "largest"),
    [(3, 3, 3), ("1-4", 1, 4), ([1, 4], 1, 4), ((2, 8), 2, 8), ("2-2", 2, 2)],
)
def test_workers_are_a_number_or_a_range(value, smallest, largest, tmp_path):
    config = override(Config(), {"compute.num_workers": value})
    workers = config.compute.workers
    assert (workers.smallest, workers.largest) == (smallest, largest)
    assert ComputeConfig(num_workers=value) == config.compute
    assert override(Config(), flatten(config)) == config
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config
    (tmp_path / "config.json").write_text(json.dumps({"compute.num_workers": value}))
    assert load_config(tmp_path / "config.json") == config


def test_no_limit_of_restarts_is_allowed():
    assert ComputeConfig(max_failures=-1).max_failures == -1


def test_a_number_of_actors_may_be_a_range(tmp_path):
    config = override(Config(), {"compute.mask_actors": "2-8", "compute.predict_actors": 3})
    assert (config.compute.mask_actors, config.compute.predict_actors) == ("2-8", 3)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config
