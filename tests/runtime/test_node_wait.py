"""Waiting for nodes, with a clock of its own."""

from __future__ import annotations

import pytest

from sfss_ray.errors import ClusterError
from sfss_ray.runtime import node_wait
from sfss_ray.runtime.node_wait import wait_until_held
from sfss_ray.runtime.resources import Demand, Resources

WORKERS = Demand("training workers", 2, "compute.num_workers", 1.0, 1.0)
HEAD = (2.0, 0.0)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, which passes only while someone sleeps."""
    now = [100.0]
    monkeypatch.setattr(node_wait.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(node_wait.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    return now


def cluster_of(*nodes: tuple[float, float]) -> Resources:
    cpus, gpus = (sum(node[k] for node in nodes) for k in (0, 1))
    return Resources(cpus, int(gpus), nodes)


def test_it_ends_once_the_nodes_hold_every_process(clock):
    def read() -> Resources:
        joined = [after for after in (130.0, 175.5) if clock[0] >= after]
        return cluster_of(HEAD, *[(1.0, 1.0)] * len(joined))

    lines: list[str] = []
    resources = wait_until_held(WORKERS, read, 600, lines.append)
    assert resources.gpus == 2
    assert 175.5 <= clock[0] < 177
    assert lines == [
        "waiting up to 600 s (compute.wait_for_nodes_s) for nodes that hold 2 training workers of 1"
        " CPU and 1 GPU each: the cluster has 2 CPUs and 0 GPUs",
        "waiting for nodes: 60 of 600 s have passed",
        "the cluster has 4 CPUs and 2 GPUs on 3 nodes after 76 s",
    ]


@pytest.mark.parametrize("seconds", [0, 2.5])
def test_it_ends_with_one_line_once_the_time_has_passed(seconds, clock):
    lines: list[str] = []
    nodes = (HEAD, (1.0, 1.0))
    with pytest.raises(ClusterError) as refused:
        wait_until_held(WORKERS, lambda: cluster_of(*nodes), seconds, lines.append)
    assert clock[0] == 100.0 + seconds
    assert str(refused.value) == (
        f"no nodes that hold 2 training workers of 1 CPU and 1 GPU each joined within {seconds:g} s:"
        " the cluster has 3 CPUs and 1 GPU on 2 nodes; check that the group of nodes can grow, raise"
        " compute.wait_for_nodes_s, or choose compute.device cpu"
    )
    assert len(lines) == (1 if seconds else 0)


def test_processes_on_cpus_are_not_advised_to_use_cpus(clock):
    demand = Demand("training workers", 4, "compute.num_workers", 1.0)
    with pytest.raises(ClusterError, match=r"raise compute\.wait_for_nodes_s$"):
        wait_until_held(demand, lambda: cluster_of(HEAD), 0, str)
