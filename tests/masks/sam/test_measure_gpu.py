"""Many masks enlarged, measured and encoded at once, as on a GPU."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sfss_ray.masks.bank import run_lengths
from sfss_ray.masks.sam import measure_gpu
from sfss_ray.masks.sam.measure_gpu import (
    DeferredMasks,
    FullImageUpsampler,
    count_pixels,
    measure_masks,
)


@pytest.mark.parametrize("padded", [96, 100], ids=["integer factor", "other factor"])
@pytest.mark.parametrize("padding", [0, 3, 53])
def test_enlarging_without_the_padding_changes_no_bit(padded, padding):
    low, size, input_size = torch.randn(3, 24, 24), (50, 70), (padded - padding, padded)
    whole = F.interpolate(low[:, None], (padded, padded), mode="bilinear")
    whole = F.interpolate(whole[..., : input_size[0], : input_size[1]], size, mode="bilinear")[:, 0]
    upsampler = FullImageUpsampler((24, 24), padded, input_size, size)
    assert torch.equal(torch.cat(list(upsampler.chunks(low))), whole)


@pytest.mark.parametrize("origin", [(0, 0), (3, 5)], ids=["image", "crop"])
def test_pixel_counts_boxes_and_run_lengths_are_those_of_single_masks(origin, monkeypatch):
    """The masks include an empty one, a full one, and one with only the first and the last pixel."""
    monkeypatch.setattr(measure_gpu, "_PIXELS_AT_ONCE", 3 * 32**2)
    low = F.avg_pool2d(torch.randn(8, 1, 32, 32), 5, 1, 2)[:, 0]
    low[0], low[1] = -1, 1
    low[2] = -1
    low[2, 0, 0] = low[2, -1, -1] = 1
    upsampler = FullImageUpsampler((32, 32), 32, (32, 32), (32, 32))
    counts, boxes = measure_masks(low, upsampler, 0.0, 0.1)
    size = (32 + 2 * origin[0], 32 + 2 * origin[1])
    runs = DeferredMasks(low, upsampler, 0.0).counts_in_image(boxes, origin, size)
    masks = [mask.numpy() for mask in low > 0]
    for k, mask in enumerate(masks):
        assert counts[k].tolist() == [(low[k] > 0.1).sum(), (low[k] > -0.1).sum()]
        y, x = np.nonzero(mask)
        box = [x.min(), y.min(), x.max(), y.max()] if len(x) else [0, 0, 0, 0]
        assert boxes[k].tolist() == box
        expected = run_lengths.encode_masks([mask], [origin], size)[0]
        assert runs[k].tolist() == expected.tolist()


@pytest.mark.parametrize(
    "size", [(32, 32), (64, 96), (33, 31), (7, 8), (1, 1), (37, 1000), (1030, 8)]
)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_pixels_are_counted_in_blocks_and_in_the_remainder(size, density):
    masks = torch.rand(3, *size) < density
    assert count_pixels(masks).tolist() == [int(mask.sum()) for mask in masks]
    assert count_pixels(masks[:0]).shape == (0,)


def test_no_masks_give_empty_results():
    upsampler, low = FullImageUpsampler((8, 8), 32, (32, 32), (40, 40)), torch.zeros(0, 8, 8)
    counts, boxes = measure_masks(low, upsampler, 0.0, 1.0)
    assert (counts.shape, boxes.shape) == ((0, 2), (0, 4))
    assert DeferredMasks(low, upsampler, 0.0).counts_in_image(boxes, (0, 0), (40, 40)) == []
