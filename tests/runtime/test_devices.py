"""The device of workers: chosen from tables of nodes, and checked in the worker."""

from __future__ import annotations

import socket

import pytest
import torch

from sfss_ray.config import ComputeConfig
from sfss_ray.errors import ClusterError
from sfss_ray.runtime.devices import choose_device, requires_gpu, worker_device
from sfss_ray.runtime.resources import read_nodes


def node(cpus: float, gpus: float = 0, kind: str = "", alive: bool = True, **labels: str) -> dict:
    """A row of `ray.nodes()`."""
    resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    resources |= {f"accelerator_type:{kind}": 1.0} if kind else {}
    return {"Alive": alive, "Resources": resources, "Labels": labels}


HEAD = node(4)
A100 = node(8, 2, "A100", zone="a")
T4 = node(8, 1, "T4", zone="b")


@pytest.mark.parametrize(
    ("nodes", "limit", "compute", "device"),
    [
        ([HEAD], None, {}, "cpu"),
        ([HEAD, A100], None, {}, "cuda"),
        ([HEAD, A100], None, {"device": "cpu"}, "cpu"),
        ([HEAD], (64.0, 8.0), {}, "cuda"),
        ([HEAD], (64.0, 0.0), {}, "cpu"),
        ([HEAD, {**A100, "Alive": False}], None, {}, "cpu"),
        ([HEAD, A100], None, {"label_selector": "zone=b"}, "cpu"),
        ([HEAD, A100, T4], None, {"label_selector": "zone=b"}, "cuda"),
        ([HEAD, A100], None, {"accelerator_type": "A100"}, "cuda"),
    ],
)
def test_the_usable_nodes_decide(nodes, limit, compute, device):
    config = ComputeConfig(**compute)
    assert choose_device(config, read_nodes(nodes, config, limit)) == device


@pytest.mark.parametrize(
    ("compute", "limit", "message"),
    [
        (
            {"device": "cuda"},
            None,
            "device is 'cuda' but the cluster has no GPU: choose device cpu",
        ),
        ({"device": "cuda"}, (9.0, 0.0), "the cluster has no GPU: choose device cpu"),
        ({"accelerator_type": "H100"}, None, "has no GPU of type H100: choose another"),
        (
            {"device": "cuda", "label_selector": "zone=!a"},
            None,
            "has no GPU on nodes with zone=!a",
        ),
    ],
)
def test_a_gpu_that_is_required_and_missing_is_one_line(compute, limit, message):
    config = ComputeConfig(**compute)
    nodes = [HEAD, A100] if "device" not in compute or "label_selector" in compute else [HEAD]
    with pytest.raises(ClusterError, match=message) as refused:
        choose_device(config, read_nodes(nodes, config, limit))
    assert "\n" not in str(refused.value)


def test_an_awaited_gpu_is_no_error():
    config = ComputeConfig(device="cuda")
    assert choose_device(config, read_nodes([HEAD], config, awaits_gpus=True)) == "cuda"
    # An autoscaler that cannot add any is not waited for.
    with pytest.raises(ClusterError, match="no GPU"):
        choose_device(config, read_nodes([HEAD], config, (9.0, 0.0), awaits_gpus=True))


@pytest.mark.parametrize(
    ("compute", "required"),
    [
        ({}, False),
        ({"device": "cuda"}, True),
        ({"accelerator_type": "A100"}, True),
        ({"device": "cpu", "accelerator_type": "A100"}, False),
    ],
)
def test_a_type_of_gpu_is_a_demand_for_one(compute, required):
    assert requires_gpu(ComputeConfig(**compute)) is required


@pytest.mark.parametrize(("usable", "device"), [(True, "cuda"), (True, "cpu"), (False, "cpu")])
def test_a_worker_computes_on_the_device_of_the_run(usable, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    assert worker_device(device) == device


@pytest.mark.parametrize(
    ("build", "text"), [(None, "built without CUDA"), ("13.0", "for CUDA 13.0")]
)
def test_a_gpu_that_torch_cannot_use_is_an_error_with_the_node(build, text, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(ClusterError, match=text) as refused:
        worker_device("cuda")
    message = str(refused.value)
    assert message.startswith(f"node {socket.gethostname()} has a GPU for Ray")
    assert "CUDA_VISIBLE_DEVICES='3'" in message
    assert "\n" not in message
