"""Tests of the networks by name and of their options."""

from __future__ import annotations

import re

import pytest
import torch

from sfss_ray.errors import ConfigError
from sfss_ray.models.architectures.catalogue import NETWORKS, build_network

# Networks that need the optional package transformers have tests of their own (test_segformer.py).
OPTIONAL = re.compile(r"former_|^hrda_|^transformers$")
WITHOUT_TRANSFORMERS = [name for name in NETWORKS if not OPTIONAL.search(name)]


@pytest.mark.parametrize("name", WITHOUT_TRANSFORMERS)
@torch.no_grad()
def test_every_network_returns_the_features_that_its_classifier_reads(name):
    network = build_network(name, 5).eval()
    images = torch.rand(2, 3, 64, 96)
    features, logits = network(images)
    if name != "espnet":  # its classifier doubles the grid
        assert features.shape[2:] == logits.shape[2:]
    assert logits.shape[:2] == (2, 5)
    assert torch.equal(logits, network.classifier(features))
    assert network.feature_width == features.shape[1]
    upsampled = network.logits(images)
    assert upsampled.shape == (2, 5, 64, 96)
    assert torch.isfinite(upsampled).all()


def test_unknown_networks_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="unknown network 'unet': known are compact, "):
        build_network("unet", 3)


def test_unknown_options_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="no option 'fusions': known are fusion, last"):
        build_network("daformer_b0", 19, {"fusions": {}})
    with pytest.raises(ConfigError, match="no option 'width': known are none"):
        build_network("compact_wide", 19, {"width": 8})


def test_options_are_passed_to_the_builder_and_remembered():
    network = build_network("compact", 3, {"width": 4})
    assert network.feature_width == 16
    assert network.options == {"width": 4}
    assert build_network("compact", 3).options == {}
