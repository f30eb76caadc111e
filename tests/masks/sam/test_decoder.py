"""The rearranged mask decoder against segment_anything's own."""

import numpy as np
import pytest
import torch
from random_sam import StockDecoder, random_sam
from segment_anything.modeling import TwoWayTransformer
from torch import nn

from sfss_ray.masks.sam.decoder import ConvProduct, FineFeatures, SharedImageDecoder, embed_points
from sfss_ray.masks.sam.upsample import RegionUpsampler


@pytest.fixture(scope="module")
def sam():
    return random_sam()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_masks_are_those_of_the_stock_decoder_at_any_depth(depth):
    """The published models have two layers."""
    sam = random_sam()
    if depth != 2:
        sam.mask_decoder.transformer = TwoWayTransformer(depth, 64, 4, 256).eval()
    embedding, points = torch.randn(1, 64, 32, 32), 256 * torch.rand(6, 2)
    with torch.no_grad():
        stock, ours = (
            decoder(sam, embedding, torch.float32).decode(points, None)
            for decoder in (StockDecoder, SharedImageDecoder)
        )
    torch.testing.assert_close(ours.predicted_iou, stock.predicted_iou, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.passed, stock.passed)
    error = (ours.logits - stock.logits).abs().max() / stock.logits.std()
    assert error < 1e-4


@pytest.mark.parametrize("input_size", [(256, 256), (128, 256), (256, 101), (3, 256), (250, 7)])
def test_padding_makes_no_pixels(sam, input_size):
    """Only values that no pixel of the image touches are missing; the others do not change."""
    embedding, points = torch.randn(1, 64, 32, 32), 256 * torch.rand(6, 2)
    with torch.no_grad():
        whole = SharedImageDecoder(sam, embedding, torch.float32).decode(points, 2.0)
        part = SharedImageDecoder(sam, embedding, torch.float32, input_size).decode(points, 2.0)
    assert part.passed.tolist() == whole.passed.tolist()
    assert 0 < len(part.passed) < 18
    assert part.low_size == whole.low_size == (128, 128)
    height, width = part.logits.shape[1:]
    # A low value is two pixels wide and is touched from one pixel beside it. Four are made together.
    assert all(
        n <= min(128, side / 2 + 5) for n, side in zip((height, width), input_size, strict=True)
    )
    torch.testing.assert_close(part.logits, whole.logits[:, :height, :width], rtol=1e-5, atol=1e-4)
    size = (input_size[0] * 2, input_size[1] * 2)
    for cropped, low in zip(part.logits, whole.logits, strict=True):
        upsampler = RegionUpsampler((128, 128), 256, input_size, size)
        regions = [upsampler.region(x.numpy(), above=-1e9) for x in (cropped, low)]
        assert [r.shape for r in regions] == [size[::-1]] * 2
        ours, stock = (np.concatenate([x for _, x in r.strips()]) for r in regions)
        np.testing.assert_allclose(ours, stock, rtol=1e-5, atol=1e-4)


def test_only_masks_above_the_predicted_iou_are_decoded(sam):
    embedding, points = torch.randn(1, 64, 32, 32), 256 * torch.rand(6, 2)
    with torch.no_grad():
        decoder = SharedImageDecoder(sam, embedding, torch.float32)
        unfiltered = decoder.decode(points, None)
        median = unfiltered.predicted_iou.median().item()
        filtered = decoder.decode(points, median)
        none = decoder.decode(points, 1e9)
    expected = torch.nonzero(unfiltered.predicted_iou.flatten() > median)[:, 0]
    assert filtered.passed.tolist() == expected.tolist()
    torch.testing.assert_close(
        filtered.logits, unfiltered.logits[filtered.passed], rtol=1e-4, atol=1e-3
    )
    assert (len(none.passed), none.logits.shape) == (0, (0, 128, 128))


def test_points_are_embedded_as_by_the_prompt_encoder(sam):
    points = 256 * torch.rand(50, 2, dtype=torch.float64)
    labels = torch.ones((50, 1), dtype=torch.int)
    stock, _ = sam.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)
    assert torch.equal(embed_points(sam.prompt_encoder, points), stock)


@pytest.mark.parametrize("n_points", [1, 3])
def test_fine_features_are_added_after_each_convolution(n_points):
    """SAM 2 adds finer features to the outputs of both 2x2 convolutions of stride 2."""
    height, width = 3, 5
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    conv1, conv2 = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.ConvTranspose2d(8, 4, 2, stride=2)
    image, half = noise(n_points, 16, height, width), noise(1, 8, 2 * height, 2 * width)
    full = noise(1, 4, 4 * height, 4 * width)
    rows = FineFeatures(half=half, full=full).rows(torch.float32)
    products = [
        ConvProduct(conv, torch.float32, added)
        for conv, added in zip((conv1, conv2), rows, strict=True)
    ]
    with torch.no_grad():
        expected = conv2((conv1(image) + half).tanh()) + full
        x = products[0](image.flatten(2).mT)
        x = products[1](x.tanh())
    pixels = x.view(n_points, height, width, 2, 2, 2, 2, 4).permute(0, 7, 1, 3, 5, 2, 4, 6)
    actual = pixels.reshape(n_points, 4, 4 * height, 4 * width)
    torch.testing.assert_close(actual, expected)
