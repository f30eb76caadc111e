"""The image encoder by blocks of rows against segment_anything's own."""

from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn

from sfss_ray.masks.sam import encoder as encoder_module
from sfss_ray.masks.sam.encoder import encode_image


def vit(**changes):
    torch.manual_seed(3)
    parameters = {
        "depth": 3, "embed_dim": 48, "img_size": 96, "num_heads": 3, "patch_size": 8, "window_size": 5,
        "norm_layer": partial(nn.LayerNorm, eps=1e-6), "use_rel_pos": True,
        "global_attn_indexes": (0, 2), "out_chans": 16,
    }  # fmt: skip
    network = ImageEncoderViT(**{**parameters, **changes}).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if "rel_pos" in name or name == "pos_embed":
            parameter.normal_(std=0.5)
    return network


@pytest.mark.parametrize("logits_at_once", [1, 144 * 12 * 5, 1 << 21])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rel_pos": False},
        {"qkv_bias": False, "use_abs_pos": False},
        {"window_size": 0},
        {"global_attn_indexes": ()},
        {"act_layer": nn.ReLU},
    ],
    ids=str,
)
def test_embeddings_are_those_of_the_model(changes, logits_at_once, monkeypatch):
    """Equal to the last bit or nearly so: the library chooses the order of a product's sums."""
    monkeypatch.setattr(encoder_module, "_LOGITS_AT_ONCE", logits_at_once)
    network, image = vit(**changes), torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(encode_image(network, image), network(image), rtol=1e-5, atol=1e-5)


def test_bfloat16_is_as_accurate_as_autocast():
    network, image = vit(), torch.randn(1, 3, 96, 96)
    exact = network(image)
    with torch.autocast("cpu", torch.bfloat16):
        fast, stock = encode_image(network, image), network(image)
    errors = [(x.float() - exact).pow(2).mean().sqrt() for x in (fast, stock)]
    assert fast.dtype == stock.dtype
    assert 0 < errors[0] < 1.2 * errors[1]


def test_no_attention_map_of_all_positions_is_made():
    """Arrays stay smaller than the map of one head; the stock model makes maps of all heads."""
    network, sizes = vit(img_size=512, num_heads=4, depth=1), []

    class SizeRecorder(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), named=None):
            result = function(*arguments, **(named or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.untyped_storage().nbytes())
            return result

    image, bytes_of_one_head = torch.randn(1, 3, 512, 512), 4 * 4096**2
    with SizeRecorder():
        encode_image(network, image)
    assert max(sizes) < bytes_of_one_head / 2
    sizes.clear()
    with SizeRecorder():
        network(image)
    assert max(sizes) >= 4 * bytes_of_one_head


@pytest.mark.parametrize("change", ["subclass", "hook", "method"])
def test_a_changed_encoder_runs_itself(change):
    network, image, calls = vit(), torch.randn(1, 3, 96, 96), []
    attention = network.blocks[0].attn
    if change == "hook":
        attention.register_forward_hook(lambda *_: calls.append(1))
    elif change == "method":
        forward = attention.forward
        attention.forward = lambda x: calls.append(1) or forward(x)
    else:

        class Attention(type(attention)):
            def forward(self, x):
                calls.append(1)
                return super().forward(x)

        attention.__class__ = Attention
    embedding = encode_image(network, image)
    assert calls == [1]
    assert torch.equal(embedding, vit()(image))
