"""Copies between the CPU and a GPU, without waiting for what the GPU is given later."""

from __future__ import annotations

import pytest
import torch

from sfss_ray.train.devices import Fetched, send


def test_on_a_cpu_nothing_is_copied():
    values = torch.arange(3), torch.ones(2, 2)
    for fetched, given in zip(Fetched(*values).wait(), values, strict=True):
        assert fetched is given
    assert send(values[0], torch.device("cpu")) is values[0]


@pytest.mark.gpu
def test_values_are_those_of_the_moment_they_were_asked_for():
    at = torch.device("cuda")
    value = torch.arange(4_000_000, device=at)
    fetched = Fetched(value, torch.ones(3))
    value.zero_()
    copy, ones = fetched.wait()
    assert not copy.is_cuda
    assert copy.equal(torch.arange(4_000_000))
    assert ones.equal(torch.ones(3))


@pytest.mark.gpu
def test_what_was_sent_may_be_overwritten_at_once():
    at = torch.device("cuda")
    busy = torch.randn(4096, 4096, device=at)
    for _ in range(20):  # the GPU is behind when the values are sent
        busy = torch.nn.functional.normalize(busy @ busy)
    value = torch.arange(1_000_000)
    sent = send(value, at)
    value.zero_()
    assert sent.cpu().equal(torch.arange(1_000_000))
