"""Which device workers get, without a cluster: Ray's answers are given here."""

from __future__ import annotations

import contextlib

import pytest
import ray
import torch

from sfss_ray import cluster
from sfss_ray.config import ComputeConfig
from sfss_ray.errors import ClusterError


@pytest.fixture
def machine(monkeypatch):
    """Sets what this machine and its cluster have; gpus None: no cluster yet."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def set_up(cuda: bool, gpus: int | None) -> None:
        found = {"CPU": 2.0} | ({"GPU": float(gpus)} if gpus else {})
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(ray, "is_initialized", lambda: gpus is not None)
        monkeypatch.setattr(ray, "cluster_resources", lambda: found)

    return set_up


@pytest.mark.parametrize(
    ("device", "cuda", "gpus", "there", "here"),
    [
        ("auto", True, None, "cuda", "cuda"),
        ("auto", True, 1, "cuda", "cuda"),
        ("auto", True, 0, "cpu", "cuda"),
        ("auto", False, 0, "cpu", "cpu"),
        ("auto", False, 1, "cpu", "cpu"),
        ("cpu", True, 1, "cpu", "cpu"),
        ("cuda", True, 1, "cuda", "cuda"),
    ],
)
def test_a_cluster_without_a_gpu_computes_on_its_cpus(machine, device, cuda, gpus, there, here):
    machine(cuda, gpus)
    compute = ComputeConfig(device=device)
    assert cluster.resolve_device(compute) == there
    assert cluster.local_device(compute) == here


def test_a_cluster_that_is_not_joined_yet_is_asked(machine, monkeypatch):
    machine(True, None)
    joined = []

    @contextlib.contextmanager
    def connected(compute):
        joined.append(compute.address)
        yield cluster.Resources(2.0, 0)

    monkeypatch.setattr(cluster, "connected", connected)
    compute = ComputeConfig(address="10.0.0.1:6379")
    assert cluster.resolve_device(compute) == "cpu"
    assert cluster.local_device(compute) == "cuda"
    assert joined == ["10.0.0.1:6379"], "once, and not for what is computed here"


def test_a_gpu_that_the_cluster_has_not_is_an_error(machine):
    machine(True, 0)
    compute = ComputeConfig(device="cuda")
    with pytest.raises(ClusterError, match="the cluster has no GPU"), cluster.connected(compute):
        pass
    machine(False, None)
    with pytest.raises(ClusterError, match="this machine has no CUDA device"):
        cluster.resolve_device(compute)
