"""The decoder with factored keys against the stock decoder and the one that writes keys."""

import pytest
import torch
from random_sam import StockDecoder, random_sam
from segment_anything.modeling import MaskDecoder, TwoWayTransformer

from sfss_ray.masks.sam import factored_decoder
from sfss_ray.masks.sam.decoder import FineFeatures, SharedImageDecoder
from sfss_ray.masks.sam.factored_decoder import FactoredDecoder, image_decoder
from sfss_ray.masks.sam.transformers_model import TransformersModel


@pytest.fixture(scope="module")
def sam():
    return random_sam()


@pytest.fixture
def prompts():
    """An image embedding, and points in pixels of the model input."""
    generator = torch.Generator().manual_seed(3)
    embedding = torch.randn((1, 64, 32, 32), generator=generator)
    return embedding, 256 * torch.rand((6, 2), generator=generator)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_masks_are_those_of_the_stock_decoder_at_any_depth(depth, prompts):
    sam, (embedding, points) = random_sam(), prompts
    if depth != 2:
        sam.mask_decoder.transformer = TwoWayTransformer(depth, 64, 4, 256).eval()
    with torch.no_grad():
        stock, ours = (
            decoder(sam, embedding, torch.float32).decode(points, None)
            for decoder in (StockDecoder, FactoredDecoder)
        )
    torch.testing.assert_close(ours.predicted_iou, stock.predicted_iou, atol=1e-4, rtol=1e-4)
    assert ours.passed.tolist() == list(range(18))
    assert (ours.logits - stock.logits).abs().max() / stock.logits.std() < 1e-4


@pytest.mark.parametrize("input_size", [(256, 256), (128, 256), (256, 101), (3, 256)])
@pytest.mark.parametrize("positions", [100, 10_000])
def test_masks_above_the_threshold_have_no_padding(
    sam, prompts, input_size, positions, monkeypatch
):
    monkeypatch.setattr(factored_decoder, "_POSITIONS_AT_ONCE", positions)
    embedding, points = prompts
    with torch.no_grad():
        expected, ours = (
            decoder(sam, embedding, torch.float32, input_size).decode(points, 2.0)
            for decoder in (SharedImageDecoder, FactoredDecoder)
        )
        none = FactoredDecoder(sam, embedding, torch.float32, input_size).decode(points, 1e9)
    assert 0 < len(ours.passed) < 18
    assert ours.passed.tolist() == expected.passed.tolist()
    assert ours.low_size == expected.low_size
    torch.testing.assert_close(ours.logits, expected.logits, atol=1e-3, rtol=1e-4)
    assert none.logits.shape == (0, *ours.logits.shape[1:])


@pytest.mark.parametrize("kind", ["sam2", "sam3"])
def test_fine_features_and_object_scores_are_computed(kind):
    pytest.importorskip("transformers")
    from family_models import IMAGE_SIDE, MODELS

    wrapped = TransformersModel(MODELS[kind]())
    generator = torch.Generator().manual_seed(1)
    full, half, embedding = (
        torch.randn((1, channels, side, side), generator=generator)
        for channels, side in ((4, 32), (8, 16), (32, 8))
    )
    fine, points = FineFeatures(half=half, full=full), IMAGE_SIDE * torch.rand(5, 2)
    with torch.no_grad():
        expected, ours = (
            decoder(wrapped._parts, embedding, torch.float32, fine=fine).decode(points, None)
            for decoder in (SharedImageDecoder, FactoredDecoder)
        )
    torch.testing.assert_close(ours.predicted_iou, expected.predicted_iou, atol=1e-5, rtol=1e-4)
    assert (ours.logits - expected.logits).abs().max() < 2e-5 * expected.logits.abs().max()


def test_wide_networks_in_float32_have_factored_keys(sam, prompts):
    wide, embedding = random_sam(), prompts[0]
    transformer = TwoWayTransformer(2, 64, num_heads=2, mlp_dim=64)
    wide.mask_decoder = MaskDecoder(transformer_dim=64, transformer=transformer).eval()
    with torch.no_grad():
        types = [
            type(image_decoder(network, embedding, dtype))
            for network, dtype in ((sam, torch.float32), (wide, torch.bfloat16))
        ]
        assert types == [SharedImageDecoder] * 2
        transformer.layers[1].cross_attn_image_to_token.num_heads = 1
        transformer.layers[0].cross_attn_image_to_token.num_heads = 1
        assert type(image_decoder(wide, embedding, torch.float32)) is FactoredDecoder
