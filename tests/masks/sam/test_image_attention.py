"""Each rearranged attention against the stock layer, written out with copies of the image."""

import pytest
import torch
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock

from sfss_ray.masks.sam.image_attention import (
    ImageAttention,
    ImageUpdate,
    Layer,
    SharedImageAttention,
    layer_norm,
)

B, T, N, C = 3, 7, 20, 16


@pytest.fixture
def data():
    """Queries (B, T, C), tokens (B, T, C), keys (B, N, C) and encodings (N, C)."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"queries": (B, T, C), "tokens": (B, T, C), "keys": (B, N, C), "pe": (N, C)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(params=[1, 2], ids=["full width", "half width"])
def attention(request):
    torch.manual_seed(1)
    return Attention(C, num_heads=4, downsample_rate=request.param).eval().requires_grad_(False)


@pytest.fixture(params=[False, True], ids=["later layer", "first layer"])
def block(request):
    torch.manual_seed(2)
    block = TwoWayAttentionBlock(
        C, num_heads=4, mlp_dim=32, attention_downsample_rate=2, skip_first_layer_pe=request.param
    )
    return block.eval().requires_grad_(False)


def test_shared_keys_give_the_attention_to_copies_of_the_image(data, attention):
    keys, pe = data["keys"][0], data["pe"]
    copies = keys.expand(B, -1, -1)
    expected = attention(q=data["queries"], k=copies + pe, v=copies)
    ours = SharedImageAttention(attention, keys, pe, torch.float32)(data["queries"], copies)
    torch.testing.assert_close(ours, expected)


def test_absorbed_projections_give_the_attention_to_each_points_image(data, attention):
    expected = attention(q=data["queries"], k=data["keys"] + data["pe"], v=data["keys"])
    ours = ImageAttention(attention, data["pe"], torch.float32)(data["queries"], data["keys"])
    torch.testing.assert_close(ours, expected)


def stock_update(block, queries, tokens, keys, pe):
    q, k = keys + pe, queries + tokens
    return block.norm4(keys + block.cross_attn_image_to_token(q=q, k=k, v=queries))


@pytest.mark.parametrize("same_keys", [False, True])
def test_the_image_is_updated_as_in_the_stock_layer(data, block, same_keys):
    keys, pe, queries, tokens = (data[name] for name in ("keys", "pe", "queries", "tokens"))
    if same_keys:
        keys = keys[:1].expand(B, -1, -1)
    expected = stock_update(block, queries, tokens, keys, pe)
    image = keys[0] + pe if same_keys else pe
    update = ImageUpdate(block, image, same_keys, torch.float32)
    torch.testing.assert_close(update(queries + tokens, queries, keys.clone()), expected)


def test_shared_keys_are_not_overwritten(data, block):
    keys = data["keys"][:1].clone()
    update = ImageUpdate(block, keys[0] + data["pe"], same_keys=True, dtype=torch.float32)
    update(data["queries"], data["tokens"], keys.expand(B, -1, -1))
    assert torch.equal(keys, data["keys"][:1])


def test_a_layer_is_the_stock_block(data, block):
    queries, tokens, keys, pe = (data[name] for name in ("queries", "tokens", "keys", "pe"))
    expected = block(queries=queries, keys=keys, query_pe=tokens, key_pe=pe.expand(B, -1, -1))
    attention = ImageAttention(block.cross_attn_token_to_image, pe, torch.float32)
    layer = Layer(block, attention, ImageUpdate(block, pe, False, torch.float32))
    for ours, stock in zip(layer.run(queries, tokens, keys.clone()), expected, strict=True):
        torch.testing.assert_close(ours, stock)


def test_layer_norm_is_computed_in_the_dtype_of_its_input():
    x, norm = torch.randn(4, C), torch.nn.LayerNorm(C, eps=1e-3)
    torch.testing.assert_close(layer_norm(x, norm.weight, norm.bias, norm.eps), norm(x))
    half = layer_norm(x.bfloat16(), norm.weight, norm.bias, norm.eps)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), norm(x), atol=0.05, rtol=0.05)
