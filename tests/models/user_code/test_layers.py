"""Tests of traversing networks whose attributes hide torch's methods."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hiding_networks import HIDDEN_METHODS, HidingNet, RegisteredNet
from torch import nn

from sfss_ray import load_model, save_model, wrap_model
from sfss_ray.models.source import open_source
from sfss_ray.models.user_code.custom import with_empty_weights, without_weights
from sfss_ray.models.user_code.layers import (
    layer_named,
    layers_of,
    named_layers,
    torch_methods,
    weights_of,
)

CLASSES = ["road", "sky", "boat", "tree", "car"]


def wrapped(net: nn.Module):
    layer = "modules.1" if isinstance(net, RegisteredNet) else "encoder.norm"
    return wrap_model(net, classes=CLASSES, feature_layer=layer)


def network_factories() -> list:
    return [pytest.param(lambda n=name: HidingNet(n), id=name) for name in HIDDEN_METHODS] + [
        pytest.param(RegisteredNet, id="registered")
    ]


def test_layers_and_weights_are_those_of_torch():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    net.add_module("again", net[0])
    net.add_module("empty", None)
    assert list(named_layers(net)) == list(net.named_modules())
    assert list(layers_of(net)) == list(net.modules())
    assert weights_of(net) == list(net.parameters())
    assert layer_named(net, "1.0") is net[1][0]


def test_hiding_attributes_are_removed_and_restored():
    net = HidingNet("parameters")
    attribute = vars(net.encoder)["parameters"]
    with torch_methods(net):
        assert len(list(net.parameters())) == 6
    assert vars(net.encoder)["parameters"] is attribute
    net.encoder.state_dict = replacement = dict  # a callable replaces the method on purpose
    with torch_methods(net):
        assert net.encoder.state_dict is replacement


def test_hiding_attributes_are_restored_after_an_error():
    net = HidingNet("modules")
    context = torch_methods(net)
    context.__enter__()
    assert "modules" not in vars(net)
    assert not context.__exit__(RuntimeError, RuntimeError(), None)
    assert isinstance(net.modules, list)


@pytest.mark.parametrize("make", network_factories())
def test_networks_with_hiding_attributes_are_source_models(make, tmp_path: Path):
    net = make()
    images = torch.rand(2, 3, 32, 48)
    model = wrapped(net)
    model.eval()
    assert not any(layer.training for layer in layers_of(net))
    with torch.no_grad():
        logits = net(model.network.prepare(images))
        expected = nn.functional.interpolate(logits, images.shape[-2:], mode="bilinear")
        assert torch.allclose(model(images), expected, atol=1e-6)
    assert {f"network.body.{name}" for name in weight_names(net)} == {
        name for name, _ in model.named_parameters()
    }

    path = save_model(tmp_path / "model.pt", model)
    blank = make()
    for weight in weights_of(blank):
        nn.init.zeros_(weight)
    again = load_model(path, module=blank)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
        double = open_source(again).load().double()
        assert torch.allclose(double(images.double()), expected, atol=1e-4)

    bare = without_weights(net)
    assert all(weight.is_meta for weight in weights_of(bare))
    assert not any(weight.is_meta for weight in weights_of(with_empty_weights(bare)))
    assert not any(weight.is_meta for weight in weights_of(net))


def weight_names(net: nn.Module) -> list[str]:
    return [
        f"{name}.{key}" if name else key
        for name, layer in named_layers(net)
        for key, weight in layer._parameters.items()
        if weight is not None
    ]


def test_wrapping_keeps_the_mode_of_every_layer():
    net = HidingNet("modules")
    nn.Module.train(net)
    net.encoder.norm.training = False
    wrapped(net)
    modes = {name: layer.training for name, layer in named_layers(net)}
    assert [name for name, training in modes.items() if not training] == ["encoder.norm"]
