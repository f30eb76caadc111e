"""Statistics of masks, against pycocotools and plain sums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco
from rectangle_masks import MASKS, RECIPE, SIZE, mask_row, record, rectangle

from sfss_ray.errors import DataError
from sfss_ray.inspection.mask_statistics import MaskStatistics, mask_depth
from sfss_ray.masks.bank.schema import write_shard
from sfss_ray.masks.bank.store import MaskStore


def test_statistics_are_those_of_plain_masks(mask_folder: Path):
    store, lines = MaskStore(mask_folder), []
    statistics = MaskStatistics.of_store(store, lines.append)
    assert lines[-1].startswith("inspected 4/4 (")
    assert (statistics.damaged, statistics.without_masks) == ({}, ["drive/c"])
    assert statistics.drawable == list(MASKS), "an image with an error has no masks to draw"
    depth = {name: np.sum([np.zeros(SIZE), *masks], axis=0) for name, masks in MASKS.items()}
    records = [mask for name in MASKS for mask in store.load(name)["masks"]]
    expected = {
        "masks_per_image": [len(masks) for masks in MASKS.values()],
        "coverage": [(d > 0).mean() for d in depth.values()],
        "overlap": [(d > 1).mean() for d in depth.values()],
        "area_share": [mask.mean() for masks in MASKS.values() for mask in masks],
        "predicted_iou": [mask["predicted_iou"] for mask in records],
        "stability_score": [mask["stability_score"] for mask in records],
    }
    spreads = statistics.spreads()
    assert set(spreads) == set(expected)
    for name, values in expected.items():
        assert statistics.values[name] == pytest.approx(values)
        spread = spreads[name]
        assert (spread.minimum, spread.median, spread.maximum) == pytest.approx(
            (np.min(values), np.median(values), np.max(values))
        ), name


def test_depth_counts_the_masks_over_each_pixel():
    rng = np.random.default_rng(1)
    masks = rng.random((6, 9, 7)) < 0.4
    masks[0], masks[1] = False, True
    rles = coco.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    depth = mask_depth([rle["counts"].decode() for rle in rles], 63)
    assert (masks.sum(0) == depth.reshape(7, 9).T).all()
    assert (mask_depth([], 6) == 0).all()
    with pytest.raises(DataError, match="cover 63 pixels, its image has 64"):
        mask_depth([rles[1]["counts"].decode()], 64)


def test_masks_of_another_size_are_named(mask_folder: Path, tmp_path: Path):
    wrong = record(rectangle(0, 0, 3, 3), 0.9) | {"counts": "55"}
    strange = mask_row("strange", tmp_path / "no.png", [wrong])
    write_shard(mask_folder / "masks-2.parquet", [strange], RECIPE)
    statistics = MaskStatistics.of_store(MaskStore(mask_folder), str)
    assert set(statistics.damaged) == {"strange"}
    assert "cover 10 pixels, its image has 600" in statistics.damaged["strange"]
    assert "strange" not in statistics.drawable


@pytest.mark.parametrize("counts", ["", "0", "5"])
def test_runs_that_do_not_fill_the_image_are_refused(counts):
    with pytest.raises(DataError, match="its image has 64: make the masks of this image again"):
        mask_depth([counts], 64)
