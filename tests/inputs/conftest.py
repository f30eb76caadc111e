"""Fixtures that the tests of inputs share."""

from __future__ import annotations

from pathlib import Path

import pytest
from street_requests import write_inputs

from sfss_ray.runtime import cluster
from sfss_ray.runtime.resources import Resources


@pytest.fixture(scope="package")
def streets(tmp_path_factory) -> Path:
    """Inputs of a run on drawn streets."""
    return write_inputs(tmp_path_factory.mktemp("streets"))


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch) -> None:
    """A cluster of two CPUs; no test may start or join one."""

    def prepare_environment() -> None:
        raise AssertionError("a cluster would have been started")

    monkeypatch.setattr(cluster, "prepare_environment", prepare_environment)
    monkeypatch.setattr(cluster, "capacity", lambda compute: Resources(2.0, 0, ((2.0, 0.0),)))
