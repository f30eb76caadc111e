"""Collectives of a single worker; tests/train/test_world_size.py runs them in two processes."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sfss_ray.method.collective import (
    average_buffers,
    gather_rows,
    global_mean,
    mean_over_workers,
    sum_over_workers,
    world_size,
)


def test_collectives_of_one_worker_are_the_identity():
    rows = torch.rand(3, 2)
    assert world_size() == 1
    assert gather_rows(rows, rows.device) is rows
    assert sum_over_workers(rows) is rows
    values = {"loss": 0.5}
    assert mean_over_workers(values, rows.device) is values


def test_buffers_of_one_worker_stay():
    layer = nn.BatchNorm1d(2)
    layer.running_mean = torch.tensor([1.0, 3.0])
    average_buffers(layer)
    assert layer.running_mean.tolist() == [1.0, 3.0]


def test_a_global_mean_is_the_weighted_mean_and_keeps_the_gradient():
    losses, weights = torch.tensor([2.0, 4.0], requires_grad=True), torch.tensor([1.0, 3.0])
    mean = global_mean((weights * losses).sum(), weights.sum())
    assert mean.item() == pytest.approx(3.5)
    mean.backward()
    torch.testing.assert_close(losses.grad, weights / 4)


def test_a_global_mean_without_weight_is_zero():
    assert global_mean(torch.tensor(0.0), torch.tensor(0.0)) == 0


def test_a_process_group_of_one_changes_no_value(tmp_path):
    rows = torch.rand(3, 2)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        assert world_size() == 1
        assert torch.equal(gather_rows(rows, rows.device), rows)
        assert torch.equal(sum_over_workers(rows), rows)
    finally:
        dist.destroy_process_group()


def test_a_global_mean_of_something_without_weight_is_zero_too():
    total = torch.tensor([5.0, 6.0], requires_grad=True)
    mean = global_mean(total, torch.tensor([0.0, 2.0]))
    assert mean.tolist() == [0.0, 3.0]
    mean.sum().backward()
    assert total.grad is not None
    assert total.grad.tolist() == [0.0, 0.5]
