"""Layers of transformers under segment_anything's names."""

import pytest
import torch

pytest.importorskip("transformers")
from family_models import MODELS

from sfss_ray.masks.sam.decoder import embed_points
from sfss_ray.masks.sam.family_parts import is_stock_decoder, read_family_parts


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


@torch.no_grad()
def test_attention_is_that_of_transformers_with_the_same_weights(model):
    parts = read_family_parts(model, 128)
    layers = model.mask_decoder.transformer.layers
    for block, layer in zip(parts.mask_decoder.transformer.layers, layers, strict=True):
        assert block.norm2 is layer.layer_norm2
        q, image = torch.randn(3, 5, 32), torch.randn(3, 64, 32)
        expected, _ = layer.cross_attn_token_to_image(q[None], image[None], image[None])
        ours = block.cross_attn_token_to_image(q=q, k=image, v=image)
        torch.testing.assert_close(ours, expected[0], atol=1e-5, rtol=1e-4)
        assert block.self_attn.q_proj is layer.self_attn.q_proj


@torch.no_grad()
def test_points_are_embedded_as_by_the_models_prompt_encoder(model):
    side = model.prompt_encoder.input_image_size
    parts, points = read_family_parts(model, side), side * torch.rand(6, 2)
    labels = torch.ones(1, 6, 1, dtype=torch.int64)
    expected, dense = model.prompt_encoder(points[None, :, None], labels, None, None)
    assert torch.equal(embed_points(parts.prompt_encoder, points), expected[0])
    assert torch.equal(parts.prompt_encoder.no_mask_embed.weight[0], dense[0, :, 0, 0])
    assert parts.image_encoder.img_size == side


def test_a_hook_or_another_class_in_the_decoder_is_noticed(model):
    class Louder(torch.nn.GELU):
        def forward(self, x):
            return 2 * super().forward(x)

    assert is_stock_decoder(model)
    model.mask_decoder.iou_prediction_head.register_forward_pre_hook(lambda *_: None)
    assert not is_stock_decoder(model)
    model.mask_decoder.iou_prediction_head._forward_pre_hooks.clear()
    model.mask_decoder.activation = Louder()
    assert not is_stock_decoder(model)
    model.mask_decoder.activation = torch.nn.GELU()
    model.mask_decoder.transformer.forward = lambda *_, **__: None
    assert not is_stock_decoder(model)


@torch.no_grad()
def test_hooks_by_which_transformers_records_attention_change_nothing(model):
    side = model.prompt_encoder.input_image_size
    inputs = {
        "pixel_values": torch.zeros(1, 3, side, side),
        "input_points": torch.zeros(1, 1, 1, 2),
    }
    model(**inputs, output_attentions=True)
    assert any(module._forward_hooks for module in model.mask_decoder.modules())
    assert is_stock_decoder(model)
