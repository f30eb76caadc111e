"""Pixel counts, boxes and packed pixels of single masks against plain numpy."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from sfss_ray.masks.bank import run_lengths
from sfss_ray.masks.sam.measure_cpu import PackedMask, PackedMasks, measure_mask, tight_box
from sfss_ray.masks.sam.upsample import RegionUpsampler


@pytest.mark.parametrize(("above", "ambiguous"), [(2e-6, True), (2e-4, False), (-2e-6, True)])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_a_mask_is_ambiguous_if_a_logit_touches_the_threshold(above, ambiguous, threshold):
    low = np.full((8, 8), threshold - 4, np.float32)
    low[2:6, 2:6] = threshold + 6
    low[3, 3] = threshold + above
    upsampler = RegionUpsampler((8, 8), 8, (8, 8), (8, 8))
    measured = measure_mask(low, upsampler, threshold, 1.0, check_rounding=True)
    assert measured.mask.ambiguous is ambiguous
    assert measured.pixel_counts == (15, 16)
    assert measured.box == (2, 2, 5, 5)
    assert measured.mask.unpack().sum() == 15 + (above > 0)


@pytest.mark.parametrize("offset", [1.0, -0.5])
def test_measurements_are_those_of_the_whole_mask(offset):
    """Model input and image have the size of the logits, so that enlarging changes nothing."""
    low = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    low[:3], low[:, 12:] = -9, -9
    upsampler = RegionUpsampler((16, 16), 16, (16, 16), (16, 16))
    measured = measure_mask(low, upsampler, 0.25, offset)
    expected = ((low > 0.25 + offset).sum(), (low > 0.25 - offset).sum())
    assert measured.pixel_counts == expected
    ys, xs = np.nonzero(low > 0.25)
    x0, y0, x1, y1 = measured.box
    assert measured.box == (xs.min(), ys.min(), xs.max(), ys.max())
    np.testing.assert_array_equal(measured.mask.unpack(), low[y0 : y1 + 1, x0 : x1 + 1] > 0.25)
    assert not measured.mask.ambiguous, "rounding was not checked"


@pytest.mark.parametrize(("peak", "pixel_counts"), [(-9.0, (0, 0)), (-0.5, (0, 1))])
def test_an_empty_mask_has_an_empty_box(peak, pixel_counts):
    low = np.full((8, 8), -9, np.float32)
    low[4, 5] = peak
    measured = measure_mask(low, RegionUpsampler((8, 8), 8, (8, 8), (8, 8)), 0.0, 1.0)
    assert measured.pixel_counts == pixel_counts
    assert measured.box == (0, 0, 0, 0)
    assert not measured.mask.unpack().any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 8), (17, 1)])
def test_packed_pixels_are_unpacked_transposed(shape):
    pixels = np.random.default_rng(1).random(shape) < 0.5
    packed = PackedMask.pack(pixels)
    assert packed.bits.nbytes == -(-pixels.size // 8)
    np.testing.assert_array_equal(packed.unpack(), pixels.T)


def test_run_lengths_place_the_box_in_the_image():
    rng = np.random.default_rng(2)
    boxes, masks, expected = [], [], []
    for x, y, w, h in ((0, 0, 4, 3), (5, 2, 1, 6), (3, 1, 7, 7)):
        pixels = rng.random((h, w)) < 0.6
        whole = np.zeros((20, 30), np.uint8)
        whole[y + 4 : y + 4 + h, x + 6 : x + 6 + w] = pixels
        boxes.append([x, y, x + w - 1, y + h - 1])
        masks.append(PackedMask.pack(pixels.T))
        expected.append(coco.encode(np.asfortranarray(whole))["counts"].decode())
    packed = PackedMasks(masks)
    counts = packed.counts_in_image(torch.tensor(boxes), (4, 6), (20, 30))
    assert run_lengths.to_coco_strings(counts) == expected
    assert packed.select(torch.tensor([2, 0])).masks == [masks[2], masks[0]]


def test_tight_boxes_hold_the_first_and_last_pixels():
    pixels = np.zeros((9, 7), bool)
    assert tight_box(pixels) is None
    pixels[3, 2] = pixels[8, 5] = True
    assert tight_box(pixels) == (3, 2, 8, 5)
    assert tight_box(np.ones((4, 6), bool)) == (0, 0, 3, 5)
