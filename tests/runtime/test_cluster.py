"""Which device workers get, without a cluster: Ray's answers are given here."""

from __future__ import annotations

import contextlib
import os

import pytest
import ray
import torch
from ray._private.state import state

from sfss_ray.config import ComputeConfig
from sfss_ray.errors import ClusterError
from sfss_ray.runtime import cluster


@pytest.fixture
def machine(monkeypatch):
    """Sets what this machine and its cluster have; gpus None: no cluster yet."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def set_up(cuda: bool, gpus: int | None) -> None:
        found = {"CPU": 2.0} | ({"GPU": float(gpus)} if gpus else {})
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": found}])
        monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: None)
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
        ("auto", False, 1, "cuda", "cpu"),
        ("auto", False, 4, "cuda", "cpu"),
        ("auto", False, None, "cpu", "cpu"),
        ("cpu", True, 1, "cpu", "cpu"),
        ("cuda", True, 1, "cuda", "cuda"),
        ("cuda", False, 1, "cuda", "cpu"),
    ],
)
def test_the_gpus_of_the_cluster_decide(machine, device, cuda, gpus, there, here):
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


TIMED_OUT = "The current node timed out during startup.\nThis could happen because"


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_a_cluster_that_does_not_start_is_tried_twice_and_is_one_line(
    machine, monkeypatch, failures
):
    machine(False, None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    calls: list[str] = []

    def init(address, **_):
        calls.append(address)
        if len(calls) <= failures:
            raise Exception(TIMED_OUT)

    monkeypatch.setattr(ray, "init", init)
    compute = ComputeConfig(device="cpu")
    if failures < 2:
        with cluster.connected(compute) as resources:
            assert resources.cpus == 2.0
    else:
        with (
            pytest.raises(ClusterError, match=r"timed out during startup.*run again") as told,
            cluster.connected(compute),
        ):
            pass
        assert "\n" not in str(told.value)
    assert calls == ["local"] * min(failures + 1, 2)


@pytest.mark.parametrize("error", [ConnectionError("no\nanswer"), RuntimeError("Version mismatch")])
def test_a_cluster_that_cannot_be_joined_is_one_line(machine, monkeypatch, error):
    machine(False, None)
    calls: list[str | None] = []

    def init(address, **_):
        calls.append(address)
        raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(cluster, "check_address", lambda compute: None)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with (
        pytest.raises(
            ClusterError, match=r"'10.0.0.1:6379' cannot be joined \((no|Version)"
        ) as told,
        cluster.connected(ComputeConfig(device="cpu")),
    ):
        pass
    assert "\n" not in str(told.value)
    assert calls == [None], "once: what is wrong there stays so"


def test_a_gpu_that_the_cluster_has_not_is_an_error(machine):
    machine(True, 0)
    compute = ComputeConfig(device="cuda")
    with pytest.raises(ClusterError, match="the cluster has no GPU"), cluster.connected(compute):
        pass
    machine(False, None)
    with pytest.raises(ClusterError, match="this machine has no CUDA device"):
        cluster.resolve_device(compute)


def test_what_an_autoscaler_may_bring_counts(machine, monkeypatch):
    """A group of GPUs that stands at zero."""
    machine(False, 0)
    most = {"CPU": 64, "GPU": 8}
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: most)
    resources = cluster.capacity(ComputeConfig())
    assert resources.gpus == 0
    assert cluster.resolve_device(ComputeConfig()) == "cuda"
    assert cluster.resolve_device(ComputeConfig(device="cuda")) == "cuda"
    cluster.training_demand(ComputeConfig(num_workers=8), "cuda").require(resources)
    with pytest.raises(ClusterError, match=r"holds 8 \(2 CPUs and 0 GPUs, at most 64 and 8\)"):
        cluster.training_demand(ComputeConfig(num_workers=9), "cuda").require(resources)


@pytest.mark.parametrize(
    ("nodes", "needs", "number"),
    [
        (((4.0, 0.0),), (1.0, 0.0), 4),
        (((1.0, 0.0), (1.0, 0.0)), (2.0, 0.0), 0),
        (((0.3, 0.0),), (0.1, 0.0), 3),
        (((8.0, 2.0), (1.0, 4.0)), (2.0, 1.0), 2),
        (((8.0, 4.0),), (0.0, 0.5), 8),
        ((), (1.0, 0.0), 6),
    ],
)
def test_no_process_is_split_over_nodes(nodes, needs, number):
    assert cluster.Resources(6.0, 0, nodes).holds(*needs) == number


def test_several_workers_need_room_for_their_trial():
    compute = ComputeConfig(num_workers=2)
    exact = cluster.Resources(2.0, 0, ((2.0, 0.0),))
    cluster.training_demand(compute, "cpu").require(exact)
    with pytest.raises(ClusterError, match=r"2 training workers of 1 CPU each .* holds 1"):
        cluster.trials_demand(compute, "cpu").require(exact)
    cluster.trials_demand(compute, "cpu").require(cluster.Resources(2.02, 0, ((2.02, 0.0),)))


@pytest.mark.parametrize("where", ["config", "variable"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_dashboards_address_is_named_as_such(where, scheme, machine, monkeypatch):
    machine(False, None)
    address = f"{scheme}://10.0.0.1:8265"
    compute = ComputeConfig(address=address if where == "config" else "auto")
    if where == "variable":
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=rf"dashboard.*ray job submit --address {address}"):
        cluster.check_address(compute)


@pytest.mark.parametrize("value", ["", "  ", "local"])
def test_an_empty_ray_address_is_none(value, machine, monkeypatch):
    machine(True, None)
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert cluster.cluster_address(ComputeConfig()) == "local"
    cluster.check_address(ComputeConfig())
    assert cluster.capacity(ComputeConfig()).gpus == 1
    cluster.prepare_environment()
    assert os.environ.get("RAY_ADDRESS", "local").strip() == "local"


def test_local_starts_a_cluster_although_another_is_named(machine, monkeypatch):
    machine(False, None)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    compute = ComputeConfig(address="local")
    assert cluster.cluster_address(compute) == "local"
    cluster.check_address(compute)
    assert cluster.resolve_device(compute) == "cpu"


def test_a_connection_of_the_callers_own_may_have_gpus(machine):
    """`ray.init` was called before, without an address in the config."""
    machine(False, 2)
    assert cluster.local_device(ComputeConfig(device="cuda")) == "cpu"
    assert cluster.resolve_device(ComputeConfig(device="cuda")) == "cuda"
