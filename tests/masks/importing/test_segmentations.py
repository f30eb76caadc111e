"""Masks of JSON files in each form: run lengths, polygons, and rows of pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from amg_samples import MASKS, SIZE
from pycocotools import mask as coco
from segment_anything.utils.amg import mask_to_rle_pytorch

from sfss_ray.errors import DataError
from sfss_ray.masks.importing.segmentations import encode_pixels, read_pixels, read_segmentation

MASK = MASKS["frame4"][2]
RUNS = mask_to_rle_pytorch(torch.from_numpy(MASK)[None])[0]["counts"]
STRING = coco.encode(np.asfortranarray(MASK.astype(np.uint8)))["counts"].decode()


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [*SIZE], "counts": STRING},
        {"size": [*SIZE], "counts": RUNS},
        MASK.tolist(),
        MASK.astype(int).tolist(),
    ],
    ids=["string", "numbers", "bools", "zeros and ones"],
)
def test_every_form_gives_the_same_mask(segmentation):
    counts, text = read_segmentation(segmentation, SIZE)
    assert text == STRING
    assert counts.tolist() == RUNS


@pytest.mark.parametrize("is_nested", [True, False])
def test_polygons_may_be_one_alone(is_nested):
    polygon = [2.5, 3.0, 20.0, 3.0, 11.0, 17.0]
    _, text = read_segmentation([polygon] if is_nested else polygon, SIZE)
    assert text == coco.frPyObjects([polygon], *SIZE)[0]["counts"].decode()


def test_small_polygons_are_not_rows_of_pixels():
    """A polygon of zeros and ones in an image whose size differs from its lists."""
    polygon = [0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    _, text = read_segmentation([polygon], SIZE)
    assert text == coco.frPyObjects([polygon], *SIZE)[0]["counts"].decode()


def runs(counts: Any, size: Any = SIZE) -> dict[str, Any]:
    return {"size": size, "counts": counts}


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (runs([900]), "its runs cover 900 pixels, not 960"),
        (runs([1000, -40]), "its runs cover 960 pixels, not 960"),
        (runs([960.0]), "allowed are a string or whole numbers"),
        (runs([2**70]), "allowed are a string or whole numbers"),
        (runs([[960]]), "allowed are a string or whole numbers"),
        (runs(None), "allowed are a string or whole numbers"),
        (runs("0" * 9), "its runs cover 0 pixels, not 960"),
        (runs([960], [40, 24]), "it is 24x40 pixels, its image is 40x24"),
        (runs([960], 7), "its size is 7: allowed is height and width"),
        (runs([960], None), "its size is None: allowed is height and width"),
        ([], r"its segmentation is '\[\]': allowed are run lengths or polygons"),
        (None, "its segmentation is 'None'"),
        ("abc", "its segmentation is 'abc'"),
        ([[True, False]], "it is 2x1 pixels, its image is 40x24"),
        ([[0, 1, 1, 0, 0, 1], [0, 1, 1, 0, 1, 1]], "it is 6x2 pixels, its image is 40x24"),
        ([[1, 2, 3]], "a polygon has the shape"),
    ],
)
def test_other_forms_are_refused(segmentation, reason):
    with pytest.raises(DataError, match=reason):
        read_segmentation(segmentation, SIZE)


def test_pixels_are_never_polygons():
    assert read_pixels(MASK.astype(int).tolist(), SIZE)[1] == STRING
    assert read_pixels(runs(RUNS), SIZE)[1] == STRING
    with pytest.raises(DataError, match="it is 6x1 pixels, its image is 40x24"):
        read_pixels([[2, 3, 20, 3, 11, 17]], SIZE)
    for mask in (None, [1, 2], [["a"]], "text"):
        with pytest.raises(DataError, match="allowed are run lengths or rows of pixels"):
            read_pixels(mask, SIZE)


def test_pixels_of_any_type_are_masks_where_they_are_not_zero():
    for dtype in (bool, np.uint8, np.int32, np.float32):
        assert encode_pixels(MASK.astype(dtype), SIZE)[1] == STRING
    assert encode_pixels(np.uint8(255) * MASK, SIZE)[1] == STRING
