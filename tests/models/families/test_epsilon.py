"""Tests of converting BatchNorm to another epsilon."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sfss_ray.models.families.epsilon import EPSILON, with_epsilon


def batch_norm(variances: list[float], epsilon: float) -> nn.Module:
    layer = nn.BatchNorm2d(len(variances), eps=epsilon)
    with torch.no_grad():
        layer.running_var.copy_(torch.tensor(variances))
        layer.running_mean.uniform_(-1, 1)
        layer.weight.uniform_(0.5, 2)
        layer.bias.uniform_(-1, 1)
    return nn.Sequential(layer).eval()


@pytest.mark.parametrize("epsilon", [0.0, 1e-8, 1e-3, 0.1])
@torch.no_grad()
def test_ordinary_batch_norm_gives_the_results_of_another_epsilon(epsilon):
    torch.manual_seed(0)
    variances = [1e-7, 1e-5, 1e-3, 1.0]
    original, ordinary = batch_norm(variances, epsilon), batch_norm(variances, EPSILON)
    ordinary.load_state_dict(with_epsilon(original.state_dict(), epsilon))
    images = torch.randn(2, 4, 3, 3) * torch.tensor(variances).sqrt().view(4, 1, 1)
    torch.testing.assert_close(ordinary(images), original(images), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ordinary[0].weight, original[0].weight)


def test_pytorchs_own_epsilon_changes_nothing():
    state = batch_norm([1e-7, 1.0], EPSILON).state_dict()
    converted = with_epsilon(state, EPSILON)
    assert all(torch.equal(converted[key], state[key]) for key in state)


def test_only_the_scales_of_batch_norm_change():
    state = dict(batch_norm([0.0, 1.0], 0.0).state_dict())
    state |= {"conv.weight": torch.ones(2, 3, 1, 1), "other.running_var": torch.ones(2)}
    converted = with_epsilon(state, 0.0)
    changed = [key for key in state if not torch.equal(converted[key], state[key])]
    assert changed == ["0.weight"]
    assert (
        converted["0.weight"][0] == state["0.weight"][0]
    )  # without variance there is no finite scale
    assert converted["0.weight"].dtype == torch.float32
