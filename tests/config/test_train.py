"""Knobs of training and pretraining, and their ranges."""

from __future__ import annotations

import pytest
from knob_cases import assert_refused, cases

from sfss_ray.config import (
    AugmentConfig,
    LossConfig,
    OptimConfig,
    PretrainConfig,
    TrainConfig,
)
from sfss_ray.errors import ConfigError

OUT_OF_RANGE = {
    "pretrain.num_steps": [0],
    "pretrain.precision": ["fp16"],
    "train.num_steps": [0],
    "train.batch_size": [0],
    "train.ema_momentum": [-0.1, 1.1],
    "train.batch_norm": ["off"],
    "train.optim.learning_rate": [0.0, float("nan"), float("inf")],
    "train.optim.optimizer": ["adam"],
    "train.optim.warmup_share": [1.5],
    "train.optim.warmup_steps": [-1],
    "train.augment.crop_size": [[31, 64], [64, 0]],
    "train.augment.scale_range": [[0.0, 1.0], [2.0, 1.0], [float("nan"), 1.0]],
    "train.augment.hue": [0.6],
    "train.pairs.cell_share": [0.5, 1.1],
    "train.pairs.min_cells": [0],
    "train.loss.temperature": [0, 0.0, -0.1, 101.0, float("nan")],
    "train.loss.contrast_weight": [-1.0],
    "train.loss.ramp": [[0.5, 0.2], [-0.1, 0.2], [0.5, 1.2]],
    "train.loss.embedding_dim": [1],
}


@pytest.mark.parametrize(("name", "value"), cases(OUT_OF_RANGE))
def test_values_out_of_range_are_refused(name, value):
    assert_refused(name, value)


def test_pretraining_learns_faster_than_adaptation():
    assert PretrainConfig().optim.learning_rate == 1e-3
    assert TrainConfig().optim.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("ramp", "fine"), [((0.0, 0.0), True), ((0.2, 0.2), True), ((0.3, 0.2), False), ((0, 2), False)]
)
def test_the_ramp_lies_within_the_training(ramp, fine):
    if fine:
        assert LossConfig(ramp=ramp).ramp == ramp
        return
    with pytest.raises(ConfigError, match=r"\(start, end\) with 0 <= start <= end <= 1"):
        LossConfig(ramp=ramp)


def test_the_augmentations_max_size_may_be_none():
    assert AugmentConfig().max_size is None
    assert AugmentConfig(max_size=32).max_size == 32


@pytest.mark.parametrize(
    "values", [{"augment": AugmentConfig(class_mix=0.5)}, {"optim": OptimConfig(trainable="norm")}]
)
def test_a_pretraining_refuses_settings_without_effect(values):
    with pytest.raises(ConfigError, match="have no effect on a pretraining: leave them"):
        PretrainConfig(**values)


@pytest.mark.parametrize(
    ("images", "share"), [(1, 8 / 9), (3, 8 / 11), (8, 0.5), (24, 0.25), (25, 0.25), (3000, 0.25)]
)
def test_the_source_model_counts_as_eight_images(images, share):
    assert TrainConfig().share_of_source(images) == share
    for given in (0.0, 0.25, 1.0):
        assert TrainConfig(source_share=given).share_of_source(images) == given


@pytest.mark.parametrize(
    ("knobs", "with_embeddings", "without"),
    [
        ({}, 2.0, 0.0),
        ({"neighbour_space": "geometry"}, 2.0, 2.0),
        ({"mask_vote": "none"}, 0.0, 0.0),
        ({"mask_vote": "none", "rule_out_weight": 1.0}, 2.0, 0.0),
        ({"neighbour_weight": 0.0}, 0.0, 0.0),
        ({"neighbour_weight": 0.5}, 0.5, 0.5),
    ],
)
def test_neighbours_are_asked_where_masks_can_be_compared(knobs, with_embeddings, without):
    loss = LossConfig(**knobs)
    assert loss.weight_of_neighbours(masks_have_embeddings=True) == with_embeddings
    assert loss.weight_of_neighbours(masks_have_embeddings=False) == without
    assert loss.asks_neighbours == (knobs.get("neighbour_weight", 0.0) > 0)
