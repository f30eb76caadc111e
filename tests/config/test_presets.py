"""Presets are the field's settings, over both trainings, and nothing but known knobs."""

from __future__ import annotations

import pytest
import torch

from sfss_ray.config import PRESETS, PROTOCOLS, Config, OptimConfig, find_preset, override
from sfss_ray.errors import ConfigError
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.train.optimizer import build_optimizer, learning_rate, set_learning_rate


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_preset_sets_pretraining_and_adaptation_alike(name):
    config = override(Config(), find_preset(name))
    assert config.pretrain.optim == config.train.optim
    assert config.pretrain.optim != Config().pretrain.optim


def optim(name: str) -> OptimConfig:
    return override(Config(), find_preset(name)).pretrain.optim


def test_the_cnn_line_falls_from_the_first_step():
    config = optim("cnn")
    assert learning_rate(1, 1000, config) == pytest.approx(2.5e-4)
    assert learning_rate(501, 1000, config) == pytest.approx(2.5e-4 * 0.5**0.9)


def test_the_transformer_line_rises_over_1500_steps_whatever_their_number():
    config = optim("transformer")
    for steps in (4000, 40000):
        assert learning_rate(750, steps, config) == pytest.approx(
            6e-5 * 0.5 * (1 - 749 / steps), rel=1e-9
        )
        assert learning_rate(1501, steps, config) == pytest.approx(6e-5 * (1 - 1500 / steps))


@pytest.mark.parametrize(("name", "kind"), [("cnn", "SGD"), ("transformer", "AdamW")])
def test_heads_learn_ten_times_faster(name, kind):
    network, config = build_network("compact", 3), optim(name)
    optimizer = build_optimizer(network.body, [network.classifier], config)
    set_learning_rate(optimizer, 1e-3)
    assert type(optimizer) is getattr(torch.optim, kind)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert {rates[id(p)] for p in network.body.parameters()} == {1e-3}
    assert {rates[id(p)] for p in network.classifier.parameters()} == {1e-2}
    decays = {g["weight_decay"] for g in optimizer.param_groups}
    assert decays == {0.0, config.weight_decay}


def test_unknown_presets_are_refused_with_the_known_ones():
    with pytest.raises(
        ConfigError,
        match="unknown preset 'vit': known are cnn, transformer, paper_like, recommended",
    ):
        find_preset("vit")


def test_presets_of_the_method_say_nothing_of_optimiser_and_schedule():
    for name in set(PRESETS) - set(PROTOCOLS):
        config = override(Config(), find_preset(name))
        assert config.pretrain == Config().pretrain
        assert config.train.optim == Config().train.optim
        assert config.train.num_steps == Config().train.num_steps
    assert override(Config(), find_preset("paper_like")).train.loss.mask_vote == "none"
    assert override(Config(), find_preset("recommended")) == Config()
    assert Config().train.loss.mask_vote == "pooled"
