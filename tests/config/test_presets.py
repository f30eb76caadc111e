"""Presets hold published settings of known knobs, for pretraining and adaptation alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfss_ray.config import (
    NETWORK_PRESETS,
    PRESETS,
    AugmentConfig,
    Config,
    OptimConfig,
    find_preset,
    override,
)
from sfss_ray.data.augment import draw_geometry
from sfss_ray.errors import ConfigError
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.train.optimizer import build_optimizer, learning_rate, set_learning_rate


@pytest.mark.parametrize("name", NETWORK_PRESETS)
def test_a_preset_sets_pretraining_and_adaptation_alike(name):
    config = override(Config(), find_preset(name))
    assert config.pretrain.optim == config.train.optim
    assert config.pretrain.optim != Config().pretrain.optim


@pytest.mark.parametrize("name", NETWORK_PRESETS)
def test_a_preset_shows_the_network_images_of_1024_pixels(name):
    config = override(Config(), find_preset(name))
    assert config.evaluation.max_size == 1024
    augment = config.train.augment
    assert (augment.scale_range, augment.max_size) == ((0.75, 1.25), 1024)


@pytest.mark.parametrize(
    ("image_size", "smallest", "largest"),
    [((1024, 2048), 0.375, 0.625), ((512, 1024), 0.75, 1.25), ((400, 600), 0.75, 1.25)],
)
def test_the_zoom_is_relative_to_an_image_of_that_size(image_size, smallest, largest):
    """Images of 2048x1024 count as scaled down to 1024x512. Smaller images stay as they are."""
    augment = AugmentConfig(crop_size=(32, 32), scale_range=(0.75, 1.25), max_size=1024)
    rng = np.random.default_rng(0)
    scales = [draw_geometry(augment, image_size, rng).scale for _ in range(400)]
    assert smallest <= min(scales) < smallest * 1.01
    assert largest * 0.99 < max(scales) <= largest


def test_the_zoom_is_that_of_a_range_for_the_images_own_size():
    relative = AugmentConfig(crop_size=(32, 32), scale_range=(0.75, 1.25), max_size=1024)
    absolute = AugmentConfig(crop_size=(32, 32), scale_range=(0.375, 0.625))
    for seed in range(20):
        first, second = (
            draw_geometry(augment, (1024, 2048), np.random.default_rng(seed))
            for augment in (relative, absolute)
        )
        assert first == second


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


def test_presets_of_the_method_set_no_optimiser_or_schedule():
    for name in set(PRESETS) - set(NETWORK_PRESETS):
        config = override(Config(), find_preset(name))
        assert config.pretrain == Config().pretrain
        assert config.train.optim == Config().train.optim
        assert config.train.num_steps == Config().train.num_steps
    assert override(Config(), find_preset("paper_like")).train.loss.mask_vote == "none"
    assert override(Config(), find_preset("recommended")) == Config()
    assert Config().train.loss.mask_vote == "pooled"
