"""Logits in the stock order of sums against the modules of segment_anything."""

import pytest
import torch
from random_sam import StockDecoder, random_sam

from sfss_ray.masks.sam.reference_decoder import FamilyReferenceDecoder, ReferenceDecoder


@pytest.fixture(scope="module")
def sam():
    return random_sam()


@pytest.mark.parametrize(("count", "prompts"), [(1, 1), (2, 2), (5, 5), (5, 2)])
def test_logits_are_those_of_the_requested_outputs(sam, count, prompts):
    embedding, points = torch.randn(1, 64, 32, 32), 256 * torch.rand(prompts, 2)
    points, outputs = points[torch.arange(count) % prompts], torch.arange(count) % 3
    with torch.no_grad():
        ours = ReferenceDecoder(sam, embedding).logits(points, outputs)
        stock = StockDecoder(sam, embedding, torch.float32).decode(points, None).logits
    stock = stock.unflatten(0, (count, 3))[torch.arange(count), outputs]
    assert (ours - stock).abs().max() <= 3e-6 * stock.abs().max()


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="the order of sums is MKL's")
def test_logits_equal_a_large_stock_batch_to_the_last_bit(sam):
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn((1, 64, 32, 32), generator=generator)
    points = 256 * torch.rand((7, 2), generator=generator)
    with torch.no_grad():
        ours = ReferenceDecoder(sam, embedding).logits(points, torch.full((7,), 1))
        stock = StockDecoder(sam, embedding, torch.float32).decode(points, None).logits
    assert torch.equal(ours, stock.unflatten(0, (7, 3))[:, 1])


@pytest.fixture(scope="module", params=["hf_sam", "sam2", "sam3"])
def family_model(request):
    pytest.importorskip("transformers")
    from family_models import MODELS

    return MODELS[request.param]()


@torch.no_grad()
def family_logits(model, points):
    """Return the logits (n, 3, h, w) of the model's own forward pass, and ours of the second output."""
    side = model.prompt_encoder.input_image_size
    pixels = torch.randn((1, 3, side, side), generator=torch.Generator().manual_seed(0))
    features = model.get_image_embeddings(pixels)
    levels = features if isinstance(features, list) else [features]
    labels = torch.ones((1, len(points), 1), dtype=torch.int64)
    outputs = model(
        image_embeddings=features, input_points=points[None, :, None], input_labels=labels
    )
    second = torch.full((len(points),), 1)
    return outputs.pred_masks[0], FamilyReferenceDecoder(model, levels).logits(points, second)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_logits_are_those_of_transformers(family_model, count):
    theirs, ours = family_logits(family_model, 100 * torch.rand(count, 2))
    assert (ours - theirs[:, 1]).abs().max() <= 3e-6 * theirs.abs().max()


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="the order of sums is MKL's")
def test_logits_equal_a_large_batch_of_transformers_to_the_last_bit(family_model):
    points = 100 * torch.rand((7, 2), generator=torch.Generator().manual_seed(0))
    theirs, ours = family_logits(family_model, points)
    assert torch.equal(ours, theirs[:, 1])
