"""Regions of enlarged masks against torch's two bilinear passes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam
from torch.nn import functional as F

from sfss_ray.masks.sam.upsample import (
    RegionUpsampler,
    enlarge_as_stock,
    unpadded_low_size,
)


def enlarge(low, input_size, size, padded=256):
    """Enlarge logits (h, w) as Sam.postprocess_masks does."""
    padded_logits = F.interpolate(low[None, None], (padded, padded), mode="bilinear")
    visible = padded_logits[..., : input_size[0], : input_size[1]]
    return F.interpolate(visible, size, mode="bilinear")[0, 0]


def logits_of(region):
    logits = np.empty(region.shape, np.float32)
    for part, strip in region.strips():
        logits[part] = strip
    return logits.T


@pytest.mark.parametrize("shape", [((192, 256), (150, 200)), ((256, 120), (700, 328))])
def test_a_region_contains_all_pixels_above_with_the_same_values(shape):
    input_size, size = shape
    rng = np.random.default_rng(0)
    upsampler = RegionUpsampler((128, 128), 256, input_size, size)
    for _ in range(20):
        low = torch.full((128, 128), -5.0)
        y, x = rng.integers(0, 120, 2)
        low[y : y + rng.integers(1, 60), x : x + rng.integers(1, 60)] = 3.0
        low += torch.randn(128, 128) * 0.3
        full = enlarge(low, input_size, size)
        region = upsampler.region(low.numpy(), above=-1.0)
        if region is None:
            assert not (full > -1).any()
            continue
        logits = logits_of(region)
        np.testing.assert_allclose(logits, full[region.rows, region.columns], atol=2e-5)
        assert (full > -1).sum() == (logits > -1).sum()


@pytest.mark.parametrize("input_size", [(192, 256), (256, 120)])
def test_a_mask_alone_is_enlarged_to_the_last_bit_of_a_batch(input_size):
    """segment_anything's own function, which gets the masks of 64 points at a time."""
    low = torch.randn(64, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    sam = SimpleNamespace(image_encoder=SimpleNamespace(img_size=256))
    expected = Sam.postprocess_masks(sam, low, input_size, (150, 203))
    for k in (0, 17, 63):
        for output in range(3):
            alone = enlarge_as_stock(low[k, output][None], 256, input_size, (150, 203))
            assert torch.equal(alone[0], expected[k, output])


def test_no_region_is_returned_if_no_value_is_above():
    upsampler = RegionUpsampler((8, 8), 32, (32, 32), (50, 40))
    low = np.full((8, 8), -2, np.float32)
    assert upsampler.region(low, above=-2.0) is None
    low[3, 4] = 1
    assert upsampler.region(low, above=1.0) is None
    region = upsampler.region(low, above=0.0)
    assert 0 < region.shape[0] < 40
    assert 0 < region.shape[1] < 50


def test_values_in_the_padding_make_no_region():
    upsampler = RegionUpsampler((8, 8), 32, (16, 32), (20, 40))
    low = np.full((8, 8), -2, np.float32)
    low[6:] = 5
    assert upsampler.region(low, above=0.0) is None


@pytest.mark.parametrize("input_size", [(256, 256), (192, 256), (256, 121), (1, 256), (250, 7)])
def test_only_values_in_the_padding_are_cropped(input_size):
    """Values beyond the unpadded size change no pixel, and the outermost row and column do."""
    rows, columns = unpadded_low_size((128, 128), 256, input_size)
    size = (2 * input_size[0], 2 * input_size[1])
    low = torch.randn(128, 128)
    changed = low.clone()
    changed[rows:], changed[:, columns:] = 100, 100
    full = enlarge(low, input_size, size)
    assert torch.equal(enlarge(changed, input_size, size), full)
    assert rows <= min(128, input_size[0] // 2 + 2)
    assert columns <= min(128, input_size[1] // 2 + 2)


@pytest.mark.parametrize(("padded_size", "input_size"), [(256, None), (200, (100, 200))])
def test_nothing_is_cropped_without_padding_or_an_integer_factor(padded_size, input_size):
    assert unpadded_low_size((64, 48), padded_size, input_size) == (64, 48)
