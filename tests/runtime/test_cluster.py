"""The connection to a cluster and the device of workers; Ray's answers are replaced."""

from __future__ import annotations

import contextlib
import logging
import os

import pytest
import ray
import torch
from ray._private.ray_constants import RAY_WORKER_NICENESS
from ray._private.state import state

from sfss_ray.config import ComputeConfig
from sfss_ray.errors import ClusterError
from sfss_ray.runtime import cluster
from sfss_ray.runtime.resources import Resources


@pytest.fixture
def machine(monkeypatch):
    """Sets the GPUs of this machine and of its cluster; gpus None means no cluster yet."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def set_up(cuda: bool, gpus: int | None) -> None:
        resources = {"CPU": 2.0} | ({"GPU": float(gpus)} if gpus else {})
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": resources}])
        monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: None)
        monkeypatch.setattr(ray, "is_initialized", lambda: gpus is not None)
        monkeypatch.setattr(ray, "cluster_resources", lambda: resources)

    return set_up


@pytest.mark.parametrize(
    ("device", "cuda", "gpus", "workers", "local"),
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
def test_the_gpus_of_the_cluster_decide(machine, device, cuda, gpus, workers, local):
    machine(cuda, gpus)
    compute = ComputeConfig(device=device)
    assert cluster.resolve_device(compute) == workers
    assert cluster.local_device(compute) == local


def test_a_cluster_is_joined_to_learn_its_gpus(machine, monkeypatch):
    machine(True, None)
    joined = []

    @contextlib.contextmanager
    def connected(compute):
        joined.append(compute.address)
        yield Resources(2.0, 0)

    monkeypatch.setattr(cluster, "connected", connected)
    compute = ComputeConfig(address="10.0.0.1:6379")
    assert cluster.resolve_device(compute) == "cpu"
    assert cluster.local_device(compute) == "cuda"
    assert joined == ["10.0.0.1:6379"], "once, and not for the device of this process"


TIMED_OUT = "The current node timed out during startup.\nThis could happen because"


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_a_cluster_that_does_not_start_is_tried_twice_and_the_error_is_one_line(
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
            pytest.raises(ClusterError, match=r"timed out during startup.*run again") as refused,
            cluster.connected(compute),
        ):
            pass
        assert "\n" not in str(refused.value)
    assert calls == ["local"] * min(failures + 1, 2)


@pytest.mark.parametrize("error", [ConnectionError("no\nanswer"), RuntimeError("Version mismatch")])
def test_the_error_of_a_cluster_that_cannot_be_joined_is_one_line(machine, monkeypatch, error):
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
        ) as refused,
        cluster.connected(ComputeConfig(device="cpu")),
    ):
        pass
    assert "\n" not in str(refused.value)
    assert calls == [None], "a second try would fail as the first did"


def test_a_missing_gpu_is_an_error(machine):
    machine(True, 0)
    compute = ComputeConfig(device="cuda")
    with pytest.raises(ClusterError, match="the cluster has no GPU"), cluster.connected(compute):
        pass
    machine(False, None)
    with pytest.raises(ClusterError, match="this machine has no CUDA device"):
        cluster.resolve_device(compute)


def test_gpus_that_an_autoscaler_may_add_count(machine, monkeypatch):
    """A group of GPU nodes that is scaled to zero at the moment."""
    machine(False, 0)
    limit = {"CPU": 64, "GPU": 8}
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: limit)
    resources = cluster.capacity(ComputeConfig())
    assert resources.gpus == 0
    assert cluster.resolve_device(ComputeConfig()) == "cuda"
    assert cluster.resolve_device(ComputeConfig(device="cuda")) == "cuda"
    assert resources.limit == (64.0, 8.0)


@pytest.mark.parametrize("origin", ["config", "variable"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_address_of_the_dashboard_is_refused(origin, scheme, machine, monkeypatch):
    machine(False, None)
    address = f"{scheme}://10.0.0.1:8265"
    compute = ComputeConfig(address=address if origin == "config" else "auto")
    if origin == "variable":
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=rf"dashboard.*ray job submit --address {address}"):
        cluster.check_address(compute)


@pytest.mark.parametrize("value", ["", "  ", "local"])
def test_an_empty_ray_address_counts_as_unset(value, machine, monkeypatch):
    machine(True, None)
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert cluster.cluster_address(ComputeConfig()) == "local"
    cluster.check_address(ComputeConfig())
    assert cluster.capacity(ComputeConfig()).gpus == 1
    cluster.prepare_environment()
    assert os.environ.get("RAY_ADDRESS", "local").strip() == "local"


@pytest.mark.parametrize(("value", "niceness"), [(None, "0"), ("7", "7")])
def test_workers_have_the_drivers_niceness_unless_the_user_sets_another(
    value, niceness, monkeypatch
):
    """Ray adds this value to the niceness of the process that starts the cluster."""
    monkeypatch.delenv(RAY_WORKER_NICENESS, raising=False)
    if value is not None:
        monkeypatch.setenv(RAY_WORKER_NICENESS, value)
    cluster.prepare_environment()
    assert os.environ[RAY_WORKER_NICENESS] == niceness


def test_address_local_overrides_ray_address(machine, monkeypatch):
    machine(False, None)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    compute = ComputeConfig(address="local")
    assert cluster.cluster_address(compute) == "local"
    cluster.check_address(compute)
    assert cluster.resolve_device(compute) == "cpu"


def test_an_existing_connection_may_have_gpus(machine):
    """The caller used `ray.init`, and the config has no address."""
    machine(False, 2)
    assert cluster.local_device(ComputeConfig(device="cuda")) == "cpu"
    assert cluster.resolve_device(ComputeConfig(device="cuda")) == "cuda"


@pytest.mark.parametrize(
    ("device", "usable", "expected"),
    [("auto", False, 0), ("auto", True, None), ("cpu", False, None)],
)
def test_gpus_that_torch_cannot_use_here_are_hidden_from_a_cluster_that_starts_here(
    device, usable, expected, machine, monkeypatch
):
    machine(usable, None)
    options: dict = {}
    monkeypatch.setattr(ray, "init", lambda address, **keywords: options.update(keywords))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with cluster.connected(ComputeConfig(device=device)):
        pass
    assert options.get("num_gpus") == expected


def test_labels_need_a_cluster_that_has_them(machine):
    machine(False, None)
    with pytest.raises(ClusterError, match="has no labels: give the address of a cluster"):
        cluster.capacity(ComputeConfig(label_selector="zone=a"))
    machine(False, 2)
    with pytest.raises(ClusterError, match="none of the 1 nodes of the cluster has these labels"):
        cluster.capacity(ComputeConfig(label_selector="zone=a"))


def test_only_a_cluster_that_was_joined_is_waited_for(machine, monkeypatch):
    machine(False, 0)
    compute = ComputeConfig(device="cuda")
    with pytest.raises(ClusterError, match="the cluster has no GPU"), cluster.connected(compute):
        pass
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setattr(cluster, "check_address", lambda compute: None)
    with cluster.connected(compute) as resources:
        assert resources.awaits_gpus
    with (
        pytest.raises(ClusterError, match="the cluster has no GPU"),
        cluster.connected(ComputeConfig(device="cuda", wait_for_nodes_s=0)),
    ):
        pass


def devices_of(argument, device):
    """A generator that says where it runs."""
    yield argument
    yield device


@pytest.mark.parametrize(("cuda", "gpus", "device"), [(True, 1, "cuda"), (False, 0, "cpu")])
def test_work_stays_in_this_process_where_it_has_the_device(cuda, gpus, device, machine):
    machine(cuda, gpus)
    assert list(cluster.stream(devices_of, 7, ComputeConfig(), str)) == [7, device]


@pytest.mark.parametrize(("ray_logs", "level"), [(False, "ERROR"), (True, "INFO")])
def test_logs_of_ray_are_shown_on_request(ray_logs, level, machine, monkeypatch):
    machine(False, None)
    options: dict = {}
    monkeypatch.setattr(ray, "init", lambda address, **keywords: options.update(keywords))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with cluster.connected(ComputeConfig(device="cpu", ray_logs=ray_logs)):
        assert logging.getLevelName(logging.getLogger("ray").level) == level
    assert options["log_to_driver"] is ray_logs
    assert logging.getLevelName(options["logging_level"]) == level
