"""Masks of an image: selection, duplicates among crops, small regions and records."""

import numpy as np
import pytest
import torch

from sfss_ray.masks.bank import run_lengths
from sfss_ray.masks.sam.image_masks import ImageMasks, concatenate

SIZE = (20, 30)


def rectangle(x0, y0, x1, y1):
    mask = np.zeros(SIZE, bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


def image_masks(masks, crops=None):
    boxes = []
    for mask in masks:
        ys, xs = np.nonzero(mask)
        boxes.append([xs.min(), ys.min(), xs.max(), ys.max()])
    n = len(masks)
    return ImageMasks(
        run_lengths.encode_masks(masks),
        torch.linspace(0.9, 0.5, n),
        torch.linspace(0.8, 0.4, n),
        torch.arange(2.0 * n, dtype=torch.float64).view(n, 2),
        torch.tensor(np.array(boxes)),
        torch.tensor(crops or [[0, 0, SIZE[1], SIZE[0]]] * n),
    )


def test_the_mask_of_the_smallest_crop_wins():
    masks = [rectangle(2, 2, 11, 11), rectangle(2, 2, 11, 12), rectangle(20, 3, 25, 9)]
    crops = [[0, 0, 30, 20], [0, 0, 15, 15], [0, 0, 30, 20]]
    selected = image_masks(masks, crops).without_crop_duplicates(0.7)
    assert selected.crop_boxes.tolist() == [crops[1], crops[0]]
    assert selected.boxes.tolist() == [[2, 2, 11, 12], [20, 3, 25, 9]]


def test_small_regions_are_removed_and_unchanged_masks_win():
    with_hole, with_island = rectangle(2, 2, 11, 11), rectangle(15, 5, 24, 14)
    with_hole[5, 5] = False
    with_island[0, 0] = True
    masks = [with_hole, rectangle(2, 2, 11, 11), with_island]
    cleaned = image_masks(masks).without_small_regions(3, SIZE, 0.7)
    assert cleaned.boxes.tolist() == [[2, 2, 11, 11], [15, 5, 24, 14]]
    assert [run_lengths.area(counts) for counts in cleaned.counts] == [100, 100]
    assert cleaned.predicted_iou.tolist() == pytest.approx([0.7, 0.5])


def test_records_describe_the_masks_in_every_output_mode():
    masks = [rectangle(2, 3, 11, 12), rectangle(0, 0, 0, 0)]
    for mode in ("binary_mask", "uncompressed_rle", "coco_rle"):
        records = image_masks(masks).to_records(SIZE, mode)
        assert [r["area"] for r in records] == [100, 1]
        assert [r["bbox"] for r in records] == [[2, 3, 9, 9], [0, 0, 0, 0]]
        assert [r["crop_box"] for r in records] == [[0, 0, 30, 20]] * 2
        assert [r["point_coords"] for r in records] == [[[0.0, 1.0]], [[2.0, 3.0]]]
        segmentation = records[0]["segmentation"]
        if mode == "binary_mask":
            np.testing.assert_array_equal(segmentation, masks[0])
            continue
        assert segmentation["size"] == [20, 30]
        counts = segmentation["counts"]
        counts = run_lengths.from_coco_string(counts) if mode == "coco_rle" else counts
        np.testing.assert_array_equal(run_lengths.decode(counts, SIZE), masks[0])


def test_masks_of_several_crops_are_joined_in_order():
    first, second = rectangle(0, 0, 4, 4), rectangle(10, 10, 20, 15)
    joined = concatenate([image_masks([first]), image_masks([second, first])])
    assert [run_lengths.area(counts) for counts in joined.counts] == [25, 66, 25]
    assert joined.boxes.tolist() == [[0, 0, 4, 4], [10, 10, 20, 15], [0, 0, 4, 4]]
    assert joined.select(torch.tensor([1])).boxes.tolist() == [[10, 10, 20, 15]]
