"""Tests of building SegFormer, DAFormer and HRDA with transformers."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="pip install 'sfss-ray[transformers]'")

from sfss_ray.errors import ConfigError
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.architectures.segformer import SIZES

PARAMETERS = {"b0": 3.7, "b1": 13.7, "b2": 27.4, "b3": 47.2, "b4": 64.0, "b5": 84.6}
"""Millions of parameters, as published."""


@pytest.mark.parametrize("size", SIZES)
def test_sizes_have_the_published_number_of_parameters(size):
    with torch.device("meta"):
        network = build_network(f"segformer_{size}", 19)
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
    assert parameters == pytest.approx(PARAMETERS[size], abs=0.06)


@pytest.mark.parametrize("name", ["segformer_b0", "segformer_mmseg_b0", "daformer_b0"])
def test_networks_return_features_and_logits_at_a_quarter_of_the_size(name):
    network = build_network(name, 5).eval()
    with torch.no_grad():
        features, logits = network(torch.rand(1, 3, 64, 96))
    assert features.shape == (1, network.feature_width, 16, 24)
    assert logits.shape == (1, 5, 16, 24)
    torch.testing.assert_close(network.classifier(features), logits)


def epsilons(name: str, **options) -> dict[str, set[float]]:
    """Return the epsilons of the encoder's LayerNorms by the last part of their names."""
    encoder = build_network(name, 2, options).body.encoder
    by_name: dict[str, set[float]] = {}
    for layer_name, layer in encoder.named_modules():
        if isinstance(layer, nn.LayerNorm):
            stage_norm = layer_name.count(".") == 2 and layer_name.endswith("layer_norm")
            key = "stage" if stage_norm else layer_name.rpartition(".")[2]
            by_name.setdefault(key, set()).add(layer.eps)
    return by_name


def test_layer_norms_have_the_epsilons_of_their_authors():
    names = {"layernorm_before", "layernorm_after", "layer_norm", "stage"}
    transformers = epsilons("segformer_b0")
    assert set(transformers) == names
    assert set.union(*transformers.values()) == {1e-5}
    nvlabs = epsilons("segformer_b0", original_norms=True)
    assert nvlabs.pop("layer_norm") == {1e-5}  # patch embeddings and reductions
    assert set.union(*nvlabs.values()) == {1e-6}
    assert set.union(*epsilons("segformer_mmseg_b0").values()) == {1e-6}
    assert epsilons("daformer_b0") == epsilons("segformer_b0", original_norms=True)


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'sfss-ray\[transformers\]'"):
        build_network("segformer_b2", 19)
