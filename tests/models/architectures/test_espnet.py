"""ESPNet: its grids. Its logits are compared with the published network in test_espnet_keys.py."""

from __future__ import annotations

import pytest
import torch

from sfss_ray.errors import ConfigError
from sfss_ray.models.architectures.catalogue import build_network


def test_logits_are_twice_as_fine_as_features():
    network = build_network("espnet", 7, {"p": 1, "q": 1}).eval()
    output = network(torch.rand(1, 3, 64, 96))
    assert output.features.shape == (1, 7, 32, 48)
    assert output.logits.shape == (1, 7, 64, 96)
    assert network.feature_width == 7
    assert network.size_multiple == 8


def test_every_weight_learns():
    network = build_network("espnet", 5, {"p": 1, "q": 1})
    network.logits(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_a_decoder_needs_a_channel_for_each_dilation():
    with pytest.raises(ConfigError, match="width is 4: allowed is 5 or more"):
        build_network("espnet", 4)
    assert build_network("espnet", 4, {"width": 20}).feature_width == 20
