"""ESPNetv2: its grids and scales. Its logits are compared in test_espnet_keys.py."""

from __future__ import annotations

import pytest
import torch

from sfss_ray.errors import ConfigError
from sfss_ray.models.architectures.catalogue import build_network


def test_features_and_logits_have_stride_two():
    network = build_network("espnet_v2", 11, {"scale": 0.5}).eval()
    output = network(torch.rand(1, 3, 64, 96))
    assert output.features.shape == (1, 5, 32, 48)
    assert output.logits.shape == (1, 11, 32, 48)
    assert network.size_multiple == 16


def test_every_weight_learns_except_those_that_are_not_used():
    """Checkpoints have an activation in each of three down-samplers that the forward pass skips."""
    network = build_network("espnet_v2", 4, {"scale": 0.5})
    network.logits(torch.rand(2, 3, 32, 32)).square().sum().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None]
    assert idle == [f"body.base_net.level{n}_0.eesp.module_act.weight" for n in (2, 3, 4)]
    assert not any(network.get_parameter(name).requires_grad for name in idle)


def test_other_scales_are_refused():
    with pytest.raises(ConfigError, match=r"scale is 3: allowed is 0\.5, 1\.0"):
        build_network("espnet_v2", 4, {"scale": 3})
