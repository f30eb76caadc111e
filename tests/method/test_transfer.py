"""Copies between the CPU and a GPU that do not wait for work queued later."""

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
    tensors = torch.arange(3), torch.ones(2, 2)
    for fetched, tensor in zip(Fetched(*tensors).wait(), tensors, strict=True):
        assert fetched is tensor
    array = np.arange(3)
    (sent,) = send_arrays([array], torch.device("cpu"))
    array[0] = 5
    assert sent.tolist() == [5, 1, 2]


def test_packed_tensors_are_unpacked_unchanged():
    packed = pack(MIXED)
    assert packed.dtype == torch.uint8
    assert len(packed) == sum(v.numel() * v.element_size() for v in MIXED)
    for unpacked, tensor in zip(unpack(packed, MIXED), MIXED, strict=True):
        assert unpacked.dtype == tensor.dtype
        assert unpacked.shape == tensor.shape
        assert unpacked.equal(tensor)


@pytest.mark.gpu
def test_fetched_values_are_those_at_the_time_of_the_call():
    gpu = torch.device("cuda")
    value = torch.arange(4_000_000, device=gpu)
    fetched = Fetched(value, torch.ones(3))
    value.zero_()
    copy, ones = fetched.wait()
    assert not copy.is_cuda
    assert copy.equal(torch.arange(4_000_000))
    assert ones.equal(torch.ones(3))


@pytest.mark.gpu
def test_sent_arrays_may_be_overwritten_at_once():
    gpu = torch.device("cuda")
    busy = torch.randn(4096, 4096, device=gpu)
    for _ in range(20):  # the GPU is behind when the values are sent
        busy = torch.nn.functional.normalize(busy @ busy)
    value = np.arange(1_000_000)
    (sent,) = send_arrays([value], gpu)
    value[:] = 0
    assert sent.cpu().equal(torch.arange(1_000_000))


@pytest.mark.gpu
def test_tensors_of_all_types_are_copied_together():
    gpu = torch.device("cuda")
    on_gpu = send_arrays([value.numpy() for value in MIXED], gpu)
    back = Fetched(*on_gpu[:3], MIXED[3], *on_gpu[4:]).wait()
    for sent, fetched, tensor in zip(on_gpu, back, MIXED, strict=True):
        assert sent.is_cuda
        assert not fetched.is_cuda
        assert fetched.dtype == tensor.dtype
        assert fetched.equal(tensor)
