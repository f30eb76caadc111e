"""Walks through networks whose attributes hide torch's methods, and source models made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hiding_networks import HIDDEN, HidingNet, RegisteredNet
from torch import nn

from sfss_ray import load_model, save_model, wrap_model
from sfss_ray.models.source import open_source
from sfss_ray.models.user_code.custom import with_room_for_weights, without_weights
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


def nets() -> list:
    return [pytest.param(lambda n=n: HidingNet(n), id=n) for n in HIDDEN] + [
        pytest.param(RegisteredNet, id="registered")
    ]


def test_walks_are_those_of_torch():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    net.add_module("again", net[0])
    net.add_module("empty", None)
    assert list(named_layers(net)) == list(net.named_modules())
    assert list(layers_of(net)) == list(net.modules())
    assert weights_of(net) == list(net.parameters())
    assert layer_named(net, "1.0") is net[1][0]


def test_hiding_attributes_are_set_aside_and_come_back():
    net = HidingNet("parameters")
    hidden = vars(net.encoder)["parameters"]
    with torch_methods(net):
        assert len(list(net.parameters())) == 6
    assert vars(net.encoder)["parameters"] is hidden
    net.encoder.state_dict = replaced = dict  # a callable was put there to replace the method
    with torch_methods(net):
        assert net.encoder.state_dict is replaced


@pytest.mark.parametrize("make", nets())
def test_networks_with_hiding_attributes_are_source_models(make, tmp_path: Path):
    net = make()
    images = torch.rand(2, 3, 32, 48)
    model = wrapped(net)
    model.eval()
    assert not any(layer.training for layer in layers_of(net))
    card = model.network
    with torch.no_grad():
        expected = nn.functional.interpolate(
            net(card.prepare(images)), images.shape[-2:], mode="bilinear"
        )
        assert torch.allclose(model(images), expected, atol=1e-6)
    assert {f"network.body.{k}" for k, _ in weight_names(net)} == {
        name for name, _ in model.named_parameters()
    }

    path = save_model(tmp_path / "model.pt", model)
    blank = make()
    for weight in weights_of(blank):
        nn.init.zeros_(weight)
    again = load_model(path, module=blank)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
        moved = open_source(again).load().double()
        assert torch.allclose(moved(images.double()), expected, atol=1e-4)

    bare = without_weights(net)
    assert all(weight.is_meta for weight in weights_of(bare))
    assert not any(weight.is_meta for weight in weights_of(with_room_for_weights(bare)))
    assert not any(weight.is_meta for weight in weights_of(net))


def weight_names(net: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [
        (f"{name}.{key}" if name else key, weight)
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
