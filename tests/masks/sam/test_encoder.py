"""The encoder in small parts against segment_anything's own."""

from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn

from sfss_ray.masks.sam import encoder as ours
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


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("at_once", [1, 144 * 12 * 5, 1 << 21])
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
def test_embeddings_are_those_of_the_model(changes, at_once, monkeypatch):
    """To the last bit or nearly so: the order of a product's sums is the library's."""
    monkeypatch.setattr(ours, "_LOGITS_AT_ONCE", at_once)
    network, image = vit(**changes), torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(encode_image(network, image), network(image), rtol=1e-5, atol=1e-5)


def test_in_bfloat16_as_under_autocast():
    network, image = vit(), torch.randn(1, 3, 96, 96)
    exact = network(image)
    with torch.autocast("cpu", torch.bfloat16):
        fast, stock = encode_image(network, image), network(image)
    errors = [(x.float() - exact).pow(2).mean().sqrt() for x in (fast, stock)]
    assert fast.dtype == stock.dtype
    assert 0 < errors[0] < 1.2 * errors[1]


def test_no_map_of_all_positions_is_made():
    """Arrays stay below a map of one head; the model makes one of all heads, several times."""
    network, largest = vit(img_size=512, num_heads=4, depth=1), []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), named=None):
            made = function(*arguments, **(named or {}))
            if isinstance(made, torch.Tensor):
                largest.append(made.untyped_storage().nbytes())
            return made

    image, of_one_head = torch.randn(1, 3, 512, 512), 4 * 4096**2
    with Watch():
        encode_image(network, image)
    assert max(largest) < of_one_head / 2
    largest.clear()
    with Watch():
        network(image)
    assert max(largest) >= 4 * of_one_head


@pytest.mark.parametrize("how", ["subclass", "hook", "method"])
def test_a_changed_encoder_runs_itself(how):
    network, image, called = vit(), torch.randn(1, 3, 96, 96), []
    attention = network.blocks[0].attn
    if how == "hook":
        attention.register_forward_hook(lambda *_: called.append(1))
    elif how == "method":
        forward = attention.forward
        attention.forward = lambda x: called.append(1) or forward(x)
    else:

        class Attention(type(attention)):
            def forward(self, x):
                called.append(1)
                return super().forward(x)

        attention.__class__ = Attention
    embedding = encode_image(network, image)
    assert called == [1]
    assert torch.equal(embedding, vit()(image))
