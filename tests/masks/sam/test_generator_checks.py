"""Parameters and images that the generator takes, and one-line errors for the others."""

import warnings

import numpy as np
import pytest
import torch
from image_arrays import IMAGES, picture
from segment_anything import SamAutomaticMaskGenerator

from sfss_ray.errors import DataError
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.networks import load_sam, shipped_small_sam

SETTINGS = {
    "points_per_side": 4, "pred_iou_thresh": 0.2, "stability_score_thresh": 0.2,
    "stability_score_offset": 0.1, "output_mode": "coco_rle",
}  # fmt: skip


@pytest.fixture(scope="module")
def sam():
    return load_sam(shipped_small_sam())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"output_mode": "png"}, r"'png'.*binary_mask"),
        ({"dtype": torch.float16}, r"float16.*bfloat16"),
        ({"points_per_side": None}, "exactly one"),
        ({"point_grids": [np.zeros((1, 2))]}, "exactly one"),
        ({"points_per_side": None, "point_grids": [np.zeros((3, 3))]}, r"\(3, 3\)"),
        ({"points_per_side": 0}, "at least 1"),
        ({"points_per_side": 2, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2}, "layers"),
        ({"points_per_batch": 0}, "points_per_batch is 0"),
    ],
)
def test_parameters_out_of_range_are_refused(sam, parameters, message):
    with pytest.raises(ValueError, match=message):
        AutomaticMaskGenerator(sam, **parameters)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), int), np.zeros((0, 4, 3), np.uint8), "a"],
)
def test_objects_that_are_not_images_are_refused(sam, image):
    with pytest.raises(ValueError, match=r"image is .*uint8 \(H, W, 3\)"):
        AutomaticMaskGenerator(sam, 2).generate(image)


def generate_with_both(image, **settings):
    generators = [
        cls(load_sam(shipped_small_sam()), **{**SETTINGS, **settings})
        for cls in (SamAutomaticMaskGenerator, AutomaticMaskGenerator)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [generator.generate(image) for generator in generators]


KINDS_IN_CROPS = ("float32, fractions", "float64, integers", "read-only", "mirrored")


@pytest.mark.parametrize(
    ("kind", "layers"), [*((k, 0) for k in IMAGES), *((k, 1) for k in KINDS_IN_CROPS)]
)
def test_masks_of_every_kind_of_array_are_those_of_stock(kind, layers):
    stock, ours = generate_with_both(
        IMAGES[kind](), crop_n_layers=layers, points_per_side=3 - layers
    )
    assert len(stock) >= 3
    for name in ("segmentation", "bbox", "point_coords", "crop_box"):
        assert [a[name] for a in stock] == [b[name] for b in ours]


def test_floats_above_one_wrap_around_and_a_warning_says_so_once():
    """255 * 255 = 65025 = 254 * 256 + 1: white becomes nearly black."""
    floats = picture().astype(np.float32)
    wrapped = (255 * picture().astype(int) % 256).astype(np.uint8)
    generator = AutomaticMaskGenerator(load_sam(shipped_small_sam()), **SETTINGS)
    with pytest.warns(
        UserWarning, match=r"image is float32 with values up to 2.*give uint8"
    ) as caught:
        masks = generator.generate(floats)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generator.generate(wrapped) == masks
        assert generator.generate(floats) == masks
        fresh = AutomaticMaskGenerator(load_sam(shipped_small_sam()), **SETTINGS)
        fresh.generate(np.minimum(floats / 255, 1.0))


REFUSED = {
    "greyscale": picture().mean(axis=2).astype(np.uint8),
    "float greyscale": picture().mean(axis=2),
    "one channel": picture()[..., :1],
    "RGBA": np.dstack([picture(), picture()[..., :1]]),
    "int64": picture().astype(int),
    "uint16": picture().astype(np.uint16),
    "bool": picture() > 99,
    "complex": picture().astype(complex),
    "object": picture().astype(object),
    "list": picture().tolist(),
    "a batch": picture()[None],
    "tensor": torch.from_numpy(picture()),
    "none": None,
}


@pytest.mark.parametrize("kind", REFUSED)
def test_arrays_that_stock_cannot_use_are_refused_in_one_line(kind):
    stock, ours = (
        cls(load_sam(shipped_small_sam()), **SETTINGS)
        for cls in (SamAutomaticMaskGenerator, AutomaticMaskGenerator)
    )
    with pytest.raises(Exception):  # noqa: B017, PT011  stock raises errors of many types
        stock.generate(REFUSED[kind])
    with pytest.raises(DataError, match=r"image is .*; allowed is .*\(H, W, 3\)") as caught:
        ours.generate(REFUSED[kind])
    assert "\n" not in str(caught.value)
