"""Modules that are segment_anything's own, and changes that make them others."""

import functools

import pytest
import torch
from random_sam import assert_nearly_same_masks, drawn_image, generate_with_both, random_sam
from segment_anything import SamPredictor
from segment_anything.modeling import MaskDecoder, Sam
from torch import nn

from sfss_ray.masks.sam.stock_modules import (
    changes,
    is_method_of,
    is_stock,
    is_stock_encoder,
    origin,
)


class _NegatedDecoder(MaskDecoder):
    """A changed decoder with the masks of the background."""

    def forward(self, **inputs):
        logits, predicted_iou = super().forward(**inputs)
        return -logits, predicted_iou


def test_a_decoder_of_another_class_runs_itself():
    sam = random_sam()
    assert is_stock(sam)
    sam.mask_decoder.__class__ = _NegatedDecoder
    assert not is_stock(sam)
    with pytest.warns(UserWarning, match="mask_decoder is a _NegatedDecoder"):
        assert_nearly_same_masks([generate_with_both(sam, drawn_image(), pred_iou_thresh=0.1)])


def _patched_forward(sam: Sam) -> None:
    stock = sam.mask_decoder.predict_masks
    sam.mask_decoder.predict_masks = lambda **inputs: (-stock(**inputs)[0], stock(**inputs)[1])


def _hook(sam: Sam) -> None:
    sam.mask_decoder.register_forward_hook(lambda module, inputs, out: (-out[0], out[1]))


def _deep_hook(sam: Sam) -> None:
    layer = sam.mask_decoder.transformer.layers[0].mlp
    layer.register_forward_pre_hook(lambda module, inputs: (0.9 * inputs[0],))


def _prompt_encoder_hook(sam: Sam) -> None:
    sam.prompt_encoder.register_forward_hook(lambda module, inputs, out: out)


@pytest.mark.parametrize("patch", [_patched_forward, _hook, _deep_hook, _prompt_encoder_hook])
def test_patched_modules_run_themselves(patch):
    sam = random_sam()
    patch(sam)
    assert not is_stock(sam)
    with pytest.warns(UserWarning, match=r"generator\.predictor\.model\.(mask_dec|prompt_enc)oder"):
        pair = generate_with_both(sam, drawn_image(), pred_iou_thresh=0.1, points_per_side=5)
    assert_nearly_same_masks([pair])


def test_changed_layers_are_not_stock():
    sam = random_sam()
    layer = sam.mask_decoder.transformer.layers[1]
    layer.mlp.lin1 = nn.Sequential(layer.mlp.lin1, nn.Dropout())
    assert not is_stock(sam)
    assert next(changes(sam, "model")).startswith("model.mask_decoder.transformer.layers.1.mlp")


def test_layers_for_mask_prompts_may_change():
    """Point prompts do not use them."""
    sam = random_sam()
    sam.prompt_encoder.mask_downscaling = nn.Identity()
    assert is_stock(sam)


def test_an_encoder_with_a_hook_is_not_stock():
    encoder = random_sam().image_encoder
    assert is_stock_encoder(encoder)
    hook = encoder.blocks[0].attn.register_forward_hook(lambda module, inputs, out: None)
    assert not is_stock_encoder(encoder)
    hook.remove()
    assert is_stock_encoder(encoder)


def test_a_wrapper_is_not_mistaken_for_the_function_it_wraps():
    """A patch counts even if it was made before this package was imported."""
    stock = SamPredictor.set_image
    patch = functools.wraps(stock)(lambda self, *args: stock(self, *args))
    assert patch.__qualname__ == "SamPredictor.set_image"
    assert origin(stock) == ("segment_anything.predictor", "SamPredictor.set_image")
    assert origin(patch)[0] == __name__
    assert origin(torch.no_grad()(patch))[0] == __name__
    assert origin(SamPredictor.predict_torch) == (
        "segment_anything.predictor",
        "SamPredictor.predict_torch",
    )
    assert is_method_of(SamPredictor, stock, "set_image")
    assert not is_method_of(SamPredictor, patch, "set_image")
    assert origin(len) == ("", "")
