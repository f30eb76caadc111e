"""Tests of trying a payload in a fresh process, and of the messages about what fails there."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from user_networks import (
    import_network,
    needing_a_module_without_a_file,
    needing_an_extension,
    reading_a_file,
    source_of,
)
from user_projects import FILES, on_path, write_files
from wrapped_networks import make_net, wrap

from sfss_ray.errors import ConfigError
from sfss_ray.models.user_code import round_trip
from sfss_ray.models.user_code.carried_module import check_travels
from sfss_ray.models.user_code.round_trip import RoundTrip, logits_of

__all__ = ["on_path"]


@pytest.fixture
def project(tmp_path: Path, on_path) -> Path:
    """The folder of a user's code; its `model.Net` can be imported."""
    root = write_files(tmp_path / "project", FILES)
    on_path(root)
    return root


def test_a_payload_that_works_has_no_problem(project):
    source = source_of(import_network())
    assert source.carried is not None
    trip = RoundTrip(source)
    assert set(trip.expected) == {"eval", "train"}
    assert trip.problem(source.carried.pack()) == ""


def test_code_that_was_changed_after_its_import_is_a_problem(project):
    source = source_of(import_network())
    assert source.carried is not None
    payload = source.carried.pack()
    blocks = payload.sources["helpers.numbers_of"]
    changed = {"helpers.numbers_of": type(blocks)("TWO = 3.0\n", False)}
    problem = RoundTrip(source).problem(payload._replace(sources=payload.sources | changed))
    assert problem.startswith("the module gives other logits in a fresh process")


def test_a_module_that_a_payload_lacks_is_named(project):
    source = source_of(import_network())
    assert source.carried is not None
    payload = source.carried.pack()
    fewer = {name: file for name, file in payload.sources.items() if name != "late"}
    trip = RoundTrip(source)
    assert "needs 'late'" in trip.problem(payload._replace(sources=fewer))
    assert trip.missing_module == "late"
    assert source.carried.add_import("late") is False, "it is sent already"
    assert source.carried.add_import("unused")
    assert "unused" in source.carried.pack().sources
    assert source.carried.add_import("nowhere") is False


def test_code_that_ends_the_process_is_a_problem(project):
    source = source_of(import_network())
    assert source.carried is not None
    payload = source.carried.pack()
    file = payload.sources["model"]
    ending = type(file)(
        "import os, sys\nsys.stderr.write('bye')\nsys.stderr.flush()\nos._exit(7)\n", False
    )
    problem = RoundTrip(source).problem(
        payload._replace(sources=payload.sources | {"model": ending})
    )
    assert "ends a fresh process, as on a worker, with exit code 7 (bye)" in problem


def test_code_that_waits_is_a_problem(project, monkeypatch):
    source = source_of(import_network())
    assert source.carried is not None
    trip = RoundTrip(source)
    monkeypatch.setattr(round_trip, "_TIMEOUT_S", 0.2)
    problem = trip.problem(source.carried.pack())
    assert "could not be built in a fresh process, as on a worker, within 0 s" in problem


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (reading_a_file, "does not work in a fresh process.*FileNotFoundError.*are not sent"),
        (
            needing_an_extension,
            r"needs 'kernels', which a worker cannot.*kernels\..*so is not Python",
        ),
        (needing_a_module_without_a_file, r"needs 'made_up'.*not an installed package"),
    ],
)
def test_modules_that_workers_cannot_load_are_refused_in_one_line(
    make, message, project, monkeypatch
):
    for name in ("kernels", "made_up"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        source = source_of(make(project))
        with pytest.raises(ConfigError, match=message) as error:
            check_travels(source)
    finally:
        for name in ("kernels", "made_up"):
            sys.modules.pop(name, None)
    assert "\n" not in str(error.value)
    assert "installed on every node" in str(error.value)


def test_logits_are_repeatable_and_leave_the_random_states_alone():
    class Noisy(torch.nn.Dropout):
        def forward(self, x):
            return super().forward(x) * (1 + random.random() + np.random.rand())

    module = make_net()
    module.decoder["fuse"] = torch.nn.Sequential(module.decoder["fuse"], Noisy())
    model = wrap(module)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    expected = logits_of(model, "train")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    random.random(), np.random.rand(), torch.rand(1)
    assert torch.equal(logits_of(wrap(module), "train"), expected)
    assert not torch.equal(logits_of(model, "eval"), expected)


@pytest.mark.parametrize(
    ("expected", "actual", "agree"),
    [
        ([1000.0, 0.0], [1000.5, 0.5], True),
        ([1000.0, 0.0], [1000.0, 3.0], False),
        ([float("nan"), 1.0], [float("nan"), 1.0], True),
        ([1.0], [1.0, 1.0], False),
    ],
)
def test_logits_agree_up_to_rounding(expected, actual, agree):
    assert round_trip._agree(torch.tensor(expected), torch.tensor(actual)) == agree
