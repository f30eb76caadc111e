"""Factored keys against the stock layers, which write the keys of every point."""

import pytest
import torch
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock

from sfss_ray.masks.sam.factored_keys import (
    FactoredAttention,
    FactoredKeys,
    FactoredUpdate,
    KeyBasis,
)
from sfss_ray.masks.sam.image_attention import Layer

B, T, N, C = 3, 7, 20, 16


@pytest.fixture
def data():
    """Queries and tokens (B, T, C), the image and its encodings (N, C)."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"queries": (B, T, C), "tokens": (B, T, C), "image": (N, C), "pe": (N, C)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def random_blocks(count):
    torch.manual_seed(2)
    blocks = [
        TwoWayAttentionBlock(
            C, num_heads=4, mlp_dim=32, attention_downsample_rate=2, skip_first_layer_pe=k == 0
        )
        for k in range(count)
    ]
    for block in blocks:  # the norms start with weights of 1 and biases of 0
        torch.nn.init.normal_(block.norm4.weight)
        torch.nn.init.normal_(block.norm4.bias)
    return [block.eval().requires_grad_(False) for block in blocks]


def run_factored(blocks, data):
    """Return the queries after all blocks, the keys of each point, and their basis."""
    basis = KeyBasis(data["image"], (), torch.zeros(C))
    queries, keys = data["queries"], [FactoredKeys(torch.zeros(0, N))] * B
    for block in blocks:
        attention = FactoredAttention(block.cross_attn_token_to_image, basis, data["pe"])
        update = FactoredUpdate(block, basis, data["pe"])
        queries, keys = Layer(block, attention, update).run(queries, data["tokens"], keys)
        basis = update.basis
    return queries, keys, basis


def run_stock(blocks, data):
    queries, keys = data["queries"], data["image"].expand(B, -1, -1)
    for block in blocks:
        queries, keys = block(queries, keys, data["tokens"], data["pe"].expand(B, -1, -1))
    return queries, keys


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_layers_are_the_stock_blocks(data, n_layers):
    blocks = random_blocks(n_layers)
    queries, keys, basis = run_factored(blocks, data)
    expected_queries, expected_keys = run_stock(blocks, data)
    torch.testing.assert_close(queries, expected_queries, atol=1e-4, rtol=1e-4)
    projected = basis.project(torch.eye(C))
    for ours, stock in zip(keys, expected_keys, strict=True):
        of_tokens = ours.weights.T @ ours.token_part(projected.bases)
        written = ours.scale[:, None] * projected.image + of_tokens + projected.constant
        torch.testing.assert_close(written, stock, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n_layers", [0, 1, 2])
@pytest.mark.parametrize("downsample_rate", [1, 2])
def test_tokens_attend_to_the_keys_after_any_number_of_layers(data, n_layers, downsample_rate):
    blocks = random_blocks(n_layers)
    attention = Attention(C, num_heads=4, downsample_rate=downsample_rate).requires_grad_(False)
    queries, keys, basis = run_factored(blocks, data)
    ours = FactoredAttention(attention, basis, data["pe"])(queries, keys)
    _, expected_keys = run_stock(blocks, data)
    expected = attention(q=queries, k=expected_keys + data["pe"], v=expected_keys)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_the_image_is_not_overwritten(data):
    before = {name: tensor.clone() for name, tensor in data.items()}
    run_factored(random_blocks(2), data)
    assert all(torch.equal(data[name], tensor) for name, tensor in before.items())
