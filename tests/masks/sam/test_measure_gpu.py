"""Many masks enlarged, measured and encoded at once, as a GPU does it."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sfss_ray.masks.bank import run_lengths
from sfss_ray.masks.sam import measure_gpu
from sfss_ray.masks.sam.measure_gpu import LaterMasks, WholeUpsampler, measure_whole, pixels_of


@pytest.mark.parametrize("padded", [96, 100], ids=["whole factor", "no whole factor"])
@pytest.mark.parametrize("cut_off", [0, 3, 53])
def test_enlarging_without_the_padding_changes_no_bit(padded, cut_off):
    low, size, seen = torch.randn(3, 24, 24), (50, 70), (padded - cut_off, padded)
    whole = F.interpolate(low[:, None], (padded, padded), mode="bilinear")
    whole = F.interpolate(whole[..., : seen[0], : seen[1]], size, mode="bilinear")[:, 0]
    upsampler = WholeUpsampler((24, 24), padded, seen, size)
    assert torch.equal(torch.cat(list(upsampler.chunks(low))), whole)


@pytest.mark.parametrize("origin", [(0, 0), (3, 5)], ids=["image", "crop"])
def test_counts_boxes_and_runs_are_those_of_single_masks(origin, monkeypatch):
    """Among them an empty mask, a full one, and one that touches the first and the last pixel."""
    monkeypatch.setattr(measure_gpu, "_PIXELS_AT_ONCE", 3 * 32**2)
    low = F.avg_pool2d(torch.randn(8, 1, 32, 32), 5, 1, 2)[:, 0]
    low[0], low[1] = -1, 1
    low[2] = -1
    low[2, 0, 0] = low[2, -1, -1] = 1
    upsampler = WholeUpsampler((32, 32), 32, (32, 32), (32, 32))
    counts, boxes = measure_whole(low, upsampler, 0.0, 0.1)
    size = (32 + 2 * origin[0], 32 + 2 * origin[1])
    runs = LaterMasks(low, upsampler, 0.0).runs(boxes, origin, size)
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
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_pixels_are_counted_in_words_and_where_no_word_fits(size, share):
    masks = torch.rand(3, *size) < share
    assert pixels_of(masks).tolist() == [int(mask.sum()) for mask in masks]
    assert pixels_of(masks[:0]).shape == (0,)


def test_no_masks():
    upsampler, low = WholeUpsampler((8, 8), 32, (32, 32), (40, 40)), torch.zeros(0, 8, 8)
    counts, boxes = measure_whole(low, upsampler, 0.0, 1.0)
    assert (counts.shape, boxes.shape) == ((0, 2), (0, 4))
    assert LaterMasks(low, upsampler, 0.0).runs(boxes, (0, 0), (40, 40)) == []
