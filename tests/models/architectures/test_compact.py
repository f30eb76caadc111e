"""Tests of the compact network."""

from __future__ import annotations

import pytest
import torch

from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.architectures.compact import CompactBody


@torch.no_grad()
@pytest.mark.parametrize("width", [4, 16])
def test_features_are_at_a_quarter_of_the_size(width):
    features = CompactBody(width).eval()(torch.rand(1, 3, 48, 80))
    assert features.shape == (1, 4 * width, 12, 20)


@torch.no_grad()
def test_images_of_any_size_are_accepted():
    assert CompactBody(4).eval()(torch.rand(1, 3, 37, 51)).shape[2:] == (10, 13)


def test_the_number_of_parameters_is_the_documented_one():
    network = build_network("compact", 19)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(0.95, abs=0.005)


def test_a_loss_has_a_gradient_for_every_weight():
    network = build_network("compact", 3)
    network.logits(torch.rand(2, 3, 32, 32)).square().mean().backward()
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []


@torch.no_grad()
def test_residual_blocks_start_as_the_identity():
    block = CompactBody(4).stage4[1].eval()
    x = torch.rand(1, 8, 6, 6)
    assert torch.equal(block(x), x)


@torch.no_grad()
def test_the_context_reaches_every_cell():
    """A change in one corner changes the features in the opposite one, by the pooled context."""
    body = CompactBody(4).eval()
    images = torch.rand(1, 3, 256, 256)
    changed = images.clone()
    changed[..., :32, :32] = 1 - changed[..., :32, :32]
    difference = (body(images) - body(changed)).abs()
    assert difference[..., -4:, -4:].max() > 0
