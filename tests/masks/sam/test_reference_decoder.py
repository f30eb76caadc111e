"""Logits in the stock order of sums against the modules of segment_anything."""

import pytest
import torch
from random_sam import StockDecoder, random_sam

from sfss_ray.masks.sam.reference_decoder import ReferenceDecoder


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
