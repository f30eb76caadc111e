"""Parameter groups of the optimiser and the learning rate schedule."""

import pytest
from torch import nn

from sfss_ray.config import OptimConfig
from sfss_ray.train.optimizer import build_optimizer, learning_rate, set_learning_rate


def test_learning_rate_rises_then_falls():
    config = OptimConfig(learning_rate=2.0, warmup_share=0.1, poly_power=1.0)
    rates = [learning_rate(step, 100, config) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == pytest.approx(2.0 * 0.91)
    assert rates[50] == pytest.approx(2.0 * 0.5)
    assert rates[-1] == pytest.approx(2.0 * 0.01)
    assert min(rates) > 0
    constant = OptimConfig(learning_rate=2.0, warmup_share=0.0, poly_power=0.0)
    assert {learning_rate(step, 100, constant) for step in range(1, 101)} == {2.0}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_heads_learn_faster_and_vectors_do_not_decay(name):
    body, head = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), nn.Conv2d(2, 3, 1)
    config = OptimConfig(optimizer=name, head_multiplier=10.0, weight_decay=0.01)
    optimizer = build_optimizer(body, [head, nn.Identity()], config)
    set_learning_rate(optimizer, 0.5)
    settings = {}
    for group in optimizer.param_groups:
        settings |= {id(p): (group["lr"], group["weight_decay"]) for p in group["params"]}
    assert settings[id(body[0].weight)] == (0.5, 0.01)
    assert settings[id(body[0].bias)] == (0.5, 0.0)
    assert settings[id(body[1].weight)] == (0.5, 0.0)
    assert settings[id(head.weight)] == (5.0, 0.01)
    assert settings[id(head.bias)] == (5.0, 0.0)
    assert len(settings) == 6


def test_a_head_inside_the_body_learns_at_the_heads_rate():
    body = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Conv2d(2, 3, 1, bias=False))
    optimizer = build_optimizer(body, [body[1]], OptimConfig(head_multiplier=10.0))
    set_learning_rate(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == {id(body[0].weight): 0.5, id(body[1].weight): 5.0}


def test_frozen_weights_are_left_out():
    body, head = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 1)
    body.requires_grad_(False)
    groups = build_optimizer(body, [head], OptimConfig()).param_groups
    assert {id(p) for group in groups for p in group["params"]} == set(map(id, head.parameters()))
