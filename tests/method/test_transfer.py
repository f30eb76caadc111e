"""Copies between the CPU and a GPU, without waiting for what the GPU is given later."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfss_ray.method.transfer import Fetched, pack, send_arrays, unpack

MIXED = [
    torch.tensor([[True, False, True]]),
    torch.arange(6).view(2, 3)[:, 1:],
    torch.tensor(7),
    torch.randn(0, 4),
    torch.randn(3, dtype=torch.float64),
    torch.randn(5),
    torch.tensor([1, 2, 3], dtype=torch.uint8),
]


def test_on_a_cpu_nothing_is_copied():
    values = torch.arange(3), torch.ones(2, 2)
    for fetched, given in zip(Fetched(*values).wait(), values, strict=True):
        assert fetched is given
    array = np.arange(3)
    (sent,) = send_arrays([array], torch.device("cpu"))
    array[0] = 5
    assert sent.tolist() == [5, 1, 2]


def test_what_is_packed_comes_apart_as_it_was():
    packed = pack(MIXED)
    assert packed.dtype == torch.uint8
    assert len(packed) == sum(v.numel() * v.element_size() for v in MIXED)
    for found, value in zip(unpack(packed, MIXED), MIXED, strict=True):
        assert found.dtype == value.dtype
        assert found.shape == value.shape
        assert found.equal(value)


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
    value = np.arange(1_000_000)
    (sent,) = send_arrays([value], at)
    value[:] = 0
    assert sent.cpu().equal(torch.arange(1_000_000))


@pytest.mark.gpu
def test_values_of_all_types_travel_together():
    at = torch.device("cuda")
    there = send_arrays([value.numpy() for value in MIXED], at)
    back = Fetched(*there[:3], MIXED[3], *there[4:]).wait()
    for sent, found, value in zip(there, back, MIXED, strict=True):
        assert sent.is_cuda
        assert not found.is_cuda
        assert found.dtype == value.dtype
        assert found.equal(value)
