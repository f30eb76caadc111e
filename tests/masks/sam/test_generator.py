"""Masks of the generator against segment_anything's own, with random and with trained weights."""

import inspect
import json
import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from random_sam import (
    CASES,
    LOOSE,
    StockDecoder,
    assert_nearly_same_masks,
    assert_same_record,
    drawn_image,
    generate_with_both,
    random_sam,
)
from segment_anything import SamAutomaticMaskGenerator

from sfss_ray.masks.bank import run_lengths
from sfss_ray.masks.sam import candidates, crop
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.networks import load_sam, shipped_small_sam

REPOSITORY = Path(__file__).parents[3]
on_both_paths = pytest.mark.parametrize("in_batches", [False, True], ids=["regions", "batches"])


@pytest.fixture(scope="module")
def sam():
    return random_sam()


@pytest.fixture
def choose_path(monkeypatch):
    """Choose the path of a CPU (mask by mask) or that of a GPU (in batches)."""

    def choose(in_batches):
        monkeypatch.setattr(candidates, "_runs_mask_by_mask", lambda sam: not in_batches)

    return choose


def real_images(pattern="camvid/images/val/*.jpg", count=2):
    root = Path(os.environ.get("SFSS_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    files = sorted(root.glob(pattern))[:count]
    if len(files) < count:
        pytest.skip(f"no {pattern} in {root}; set SFSS_TEST_DATA to a folder with real images")
    return [cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB) for file in files]


@on_both_paths
@pytest.mark.parametrize("case", CASES)
def test_masks_are_byte_identical_with_the_stock_decoder(
    sam, case, in_batches, choose_path, monkeypatch
):
    """All steps except the decoder are exact: not a pixel differs."""
    monkeypatch.setattr(crop, "SharedImageDecoder", StockDecoder)
    monkeypatch.setattr(crop.EncodedCrop, "can_match_stock", False)
    choose_path(in_batches)
    stock, ours = generate_with_both(sam, drawn_image(seed=1), **CASES[case])
    assert len(stock) >= 5
    assert [a["segmentation"] for a in stock] == [b["segmentation"] for b in ours]
    assert all(assert_same_record(a, b) for a, b in zip(stock, ours, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_masks_of_a_drawn_image_agree_with_stock(sam, case):
    assert_nearly_same_masks([generate_with_both(sam, drawn_image(), **CASES[case])])


@on_both_paths
@pytest.mark.parametrize("shape", [(200, 130), (256, 256), (90, 300), (40, 40), (31, 17)])
def test_masks_agree_with_stock_for_all_shapes(sam, shape, in_batches, choose_path):
    choose_path(in_batches)
    settings = {"pred_iou_thresh": -10.0, "points_per_side": 6, "stability_score_thresh": 0.3}
    pair = generate_with_both(sam, drawn_image(*shape), **settings)
    assert_nearly_same_masks([pair], at_least=3)


@pytest.mark.parametrize("case", ["quality filter", "crops"])
def test_masks_of_real_images_agree_with_stock(sam, case):
    pairs = [generate_with_both(sam, image, **CASES[case]) for image in real_images()]
    assert_nearly_same_masks(pairs)


SHIPPED_CASES = {
    "whole": {},
    "crops and small regions": {
        "points_per_side": 8,
        "crop_n_layers": 1,
        "crop_n_points_downscale_factor": 2,
        "min_mask_region_area": 100,
    },
}


def assert_equal_up_to_one_percent(pairs):
    """Assert equal RLEs in the same order; one in a hundred (or one) may have IoU .999."""
    stock, ours = ([record for pair in pairs for record in pair[k]] for k in (0, 1))
    assert [len(a) for a, _ in pairs] == [len(b) for _, b in pairs]
    assert len(stock) >= 3
    for name in ("point_coords", "crop_box"):
        assert [a[name] for a in stock] == [b[name] for b in ours]
    rles = [(a["segmentation"], b["segmentation"]) for a, b in zip(stock, ours, strict=True)]
    different = [coco.iou([a], [b], [0])[0, 0] for a, b in rles if a != b]
    assert len(different) <= max(1, 0.01 * len(stock))
    assert min(different, default=1) >= 0.999


def shipped_settings():
    """Return the settings with which the shipped small SAM was measured."""
    return json.loads(shipped_small_sam().with_suffix(".json").read_text())["generator"]


@pytest.mark.parametrize("case", SHIPPED_CASES)
def test_trained_weights_give_the_stock_masks_on_real_video(case):
    settings = shipped_settings() | SHIPPED_CASES[case]
    sam = load_sam(shipped_small_sam())
    assert_equal_up_to_one_percent(
        [generate_with_both(sam, image, **settings) for image in real_images()]
    )


def test_trained_weights_give_the_stock_masks_at_full_size():
    """2048 x 1024 pixels with few points: stock takes seconds for a dozen."""
    images = real_images("cityscapes_sample/leftImg8bit/train/*/*.png", 1)
    settings = shipped_settings()
    settings |= {"points_per_side": 4, "min_mask_region_area": 400, "pred_iou_thresh": 0.0}
    settings |= {"stability_score_thresh": 0.6}
    sam = load_sam(shipped_small_sam())
    assert_equal_up_to_one_percent([generate_with_both(sam, i, **settings) for i in images])


@on_both_paths
def test_empty_masks_pass_only_without_stability_threshold(in_batches, choose_path):
    """The stability score of an empty mask is 0 / 0; stock keeps the mask if nothing is filtered."""
    choose_path(in_batches)
    sam = random_sam()
    sam.mask_threshold = 1e9
    no_filter = {"pred_iou_thresh": -10.0, "stability_score_thresh": 0.0, "points_per_side": 4}
    stock, ours = generate_with_both(sam, drawn_image(), **no_filter)
    assert_nearly_same_masks([(stock, ours)], at_least=1)
    assert all(record["area"] == 0 and record["bbox"] == [0, 0, 0, 0] for record in ours)
    assert all(math.isnan(record["stability_score"]) for record in ours)
    no_filter["stability_score_thresh"] = 0.01
    assert AutomaticMaskGenerator(sam, **no_filter).generate(drawn_image()) == []


@on_both_paths
def test_no_mask_passes_with_crops_and_small_regions(sam, in_batches, choose_path):
    choose_path(in_batches)
    generator = AutomaticMaskGenerator(
        sam, 4, pred_iou_thresh=1e9, crop_n_layers=1, min_mask_region_area=10
    )
    assert generator.generate(drawn_image()) == []


def test_parameters_are_those_of_the_stock_generator():
    stock, ours = (
        inspect.signature(cls).parameters
        for cls in (SamAutomaticMaskGenerator, AutomaticMaskGenerator)
    )
    assert list(ours) == [*stock, "dtype", "convention", "skip_covered_iou"]
    assert all(ours[name].default == stock[name].default for name in stock)


def test_output_modes_contain_the_same_masks(sam):
    settings = {**LOOSE, "pred_iou_thresh": 1.0}
    modes = ("binary_mask", "uncompressed_rle", "coco_rle")
    records = [
        AutomaticMaskGenerator(sam, output_mode=mode, **settings).generate(drawn_image())
        for mode in modes
    ]
    assert len(records[0]) > 5
    for binary, runs, rle in zip(*records, strict=True):
        mask, counts = binary["segmentation"], runs["segmentation"]["counts"]
        assert mask.dtype == bool
        assert mask.shape == (150, 200)
        assert sum(counts[1::2]) == mask.sum() == binary["area"]
        assert run_lengths.to_coco_string(counts) == rle["segmentation"]["counts"]
        np.testing.assert_array_equal(coco.decode(rle["segmentation"]), mask)
        assert runs["segmentation"]["size"] == rle["segmentation"]["size"] == [150, 200]


def test_explicit_points_are_used(sam):
    grids = [np.array([[0.1, 0.2], [0.5, 0.5], [0.9, 0.3]])]
    settings = {"points_per_side": None, "point_grids": grids, "pred_iou_thresh": -10.0}
    pair = generate_with_both(sam, drawn_image(), stability_score_thresh=0.1, **settings)
    assert_nearly_same_masks([pair], at_least=1)


def test_bfloat16_gives_masks(sam):
    settings = {**LOOSE, "pred_iou_thresh": 1.0, "dtype": torch.bfloat16}
    assert AutomaticMaskGenerator(sam, **settings).generate(drawn_image())


@pytest.mark.gpu
def test_cuda_gives_the_masks_of_the_cpu():
    settings = {**LOOSE, "pred_iou_thresh": 1.0, "output_mode": "coco_rle"}
    sam = random_sam()
    cpu = AutomaticMaskGenerator(sam, **settings).generate(drawn_image())
    gpu = AutomaticMaskGenerator(sam.cuda(), **settings).generate(drawn_image())
    overlaps = coco.iou(*([r["segmentation"] for r in x] for x in (cpu, gpu)), [0] * len(gpu))
    assert np.median(overlaps.max(axis=1)) > 0.99
