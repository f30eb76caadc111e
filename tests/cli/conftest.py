"""Inputs that the tests of the command line share; none of them starts a cluster."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from cli_samples import write_cli_data

from sfss_ray.runtime import cluster


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return write_cli_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """Starting Ray fails the test, and the handler of SIGTERM is restored."""

    def fail() -> None:
        raise AssertionError("a cluster would have been started")

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cluster, "prepare_environment", fail)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield
    signal.signal(signal.SIGTERM, handler)
