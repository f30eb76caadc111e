"""Tests of a user's module as a segmenter: features, logits, idle weights, copies without weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ray import cloudpickle
from torch import nn
from wrapped_networks import CLASSES, make_net, wrap

from sfss_ray import load_model, save_model, wrap_model
from sfss_ray.errors import ConfigError
from sfss_ray.models.user_code.custom import (
    WrappedSegmenter,
    with_empty_weights,
    without_weights,
)


@torch.no_grad()
def test_features_are_those_of_the_named_layer_and_logits_the_modules_own():
    module, images = make_net(), torch.rand(2, 3, 40, 64)
    model = wrap(module)
    features, logits = model.network(images)
    expected = module.decoder["fuse"](module.encoder(model.network.prepare(images)))
    assert torch.equal(features, expected)
    assert model.network.feature_width == 6
    assert features.shape == (2, 6, 10, 16)
    assert torch.equal(logits, module(model.network.prepare(images)))
    assert logits.shape[-2:] == (40, 64)


@torch.no_grad()
def test_logits_coarser_than_the_features_keep_their_grid():
    module = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 3, 3, 8, 1))
    model = wrap_model(module, classes=CLASSES, feature_layer="0")
    images = torch.rand(1, 3, 32, 48)
    features, logits = model.network(images)
    assert features.shape == (1, 4, 32, 48)
    assert torch.equal(logits, module(model.network.prepare(images)))
    assert logits.shape[-2:] == (4, 6)


def test_weights_without_influence_do_not_train(tmp_path: Path):
    path = save_model(tmp_path / "x.pt", wrap(make_net()))
    network = load_model(path, module=make_net()).network
    assert isinstance(network, WrappedSegmenter)
    idle = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert idle == {"body.auxiliary.weight", "body.auxiliary.bias"}


def test_a_copy_without_weights_and_a_state_dict_give_the_module():
    module = make_net()
    module.tied = module.classifier  # one layer under two names
    bare = without_weights(module)
    assert all(p.is_meta for p in bare.parameters())
    received = with_empty_weights(cloudpickle.loads(cloudpickle.dumps(bare)))
    assert received.tied is received.classifier
    assert received.offset == 0.25  # a state dict leaves this buffer out
    received.load_state_dict(module.state_dict())
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(received.eval()(images), module(images))


def test_a_copy_without_weights_is_small():
    module = nn.Sequential(nn.Conv2d(3, 512, 3), nn.Conv2d(512, 512, 3))
    assert len(cloudpickle.dumps(module)) > 9_000_000
    assert len(cloudpickle.dumps(without_weights(module))) < 20_000


def test_frozen_weights_stay_frozen_in_copies():
    module = make_net()
    module.classifier.weight.requires_grad_(False)
    copy = with_empty_weights(module)
    assert not copy.classifier.weight.requires_grad
    assert copy.classifier.bias.requires_grad


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError),
        (MemoryError(), MemoryError),
        (RuntimeError("sizes differ"), ConfigError),
    ],
)
def test_a_lack_of_memory_is_not_a_fault_of_the_module(error, raised, monkeypatch):
    def fail(_images):
        raise error

    network = wrap(make_net()).network
    monkeypatch.setattr(network, "_run_body", fail)
    with pytest.raises(raised):
        network.grid_logits(torch.rand(1, 3, 32, 32))
