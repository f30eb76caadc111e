"""Regions of classes: boxes and areas of numpy, run lengths of pycocotools and of CVAT."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from pycocotools import mask as coco

from sfss_ray.prediction.class_regions import regions_of_classes

IDS = np.random.default_rng(0).integers(0, 5, (3, 4)).repeat(4, axis=0).repeat(3, axis=1)
IDS = np.where(IDS == 2, 3, IDS).astype(np.uint8)


def test_every_class_has_one_region():
    regions = regions_of_classes(IDS)
    assert [region.class_index for region in regions] == [0, 1, 3, 4]
    for region in regions:
        mask = region.class_index == IDS
        ys, xs = np.nonzero(mask)
        assert region.box == (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)
        assert region.area == mask.sum()
        assert region.size == IDS.shape


def test_coco_counts_are_those_of_pycocotools():
    for region in regions_of_classes(IDS):
        mask = np.asfortranarray((region.class_index == IDS).astype(np.uint8))
        assert region.coco_counts == coco.encode(mask)["counts"].decode()


def test_cvat_counts_run_along_the_rows_of_the_box():
    """The first count is that of background: 0 where the box begins with the class."""
    for region in regions_of_classes(IDS):
        x, y, width, height = region.box
        inside = (region.class_index == IDS)[y : y + height, x : x + width].ravel().tolist()
        runs = [len(list(group)) for _, group in groupby(inside)]
        assert region.cvat_counts == ([0, *runs] if inside[0] else runs)


def test_one_class_covers_the_image():
    (region,) = regions_of_classes(np.full((2, 3), 254, np.uint8))
    assert (region.class_index, region.box) == (254, (0, 0, 3, 2))
    assert region.cvat_counts == [0, 6]


def test_regions_of_random_images_are_painted_back():
    rng = np.random.default_rng(1)
    for _ in range(300):
        height, width = rng.integers(1, 9, 2)
        ids = rng.integers(0, rng.integers(1, 5), (height, width)).astype(np.uint8)
        painted = np.full((2, height, width), 255)
        for region in regions_of_classes(ids):
            runs = {"size": [height, width], "counts": region.coco_counts.encode()}
            painted[0][coco.decode(runs) > 0] = region.class_index
            x, y, w, h = region.box
            flags = np.arange(len(region.cvat_counts)) % 2
            inside = np.repeat(flags, region.cvat_counts).reshape(h, w) > 0
            painted[1][y : y + h, x : x + w][inside] = region.class_index
        assert (painted == ids).all()
