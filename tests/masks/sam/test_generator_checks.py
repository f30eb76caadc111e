"""Kinds of image arrays that segment_anything's own generator takes, and those that it does not."""

import functools
import warnings

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator

from sfss_ray.errors import DataError
from sfss_ray.masks.sam.crop import _embed_there
from sfss_ray.masks.sam.generator import AutomaticMaskGenerator
from sfss_ray.masks.sam.networks import load_sam, shipped_small_sam
from sfss_ray.masks.sam.resize import PillowResize
from sfss_ray.streets.scenes import render_scene

SETTINGS = {
    "points_per_side": 4, "pred_iou_thresh": 0.2, "stability_score_thresh": 0.2,
    "stability_score_offset": 0.1, "output_mode": "coco_rle",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@functools.cache
def picture():
    return np.ascontiguousarray(render_scene("camera", 5, 0).image[:, :200])


def fractions(dtype):
    """Values of 0 to 255 that are not whole numbers."""
    noise = np.random.default_rng(0).uniform(0, 0.999, picture().shape)
    return np.minimum(picture() + noise, 255).astype(dtype)


def read_only():
    array = picture().copy()
    array.flags.writeable = False
    return array


IMAGES = {
    "float32, whole": lambda: picture().astype(np.float32),
    "float64, whole": lambda: picture().astype(np.float64),
    "float32, fractions": lambda: fractions(np.float32),
    "float64, fractions": lambda: fractions(np.float64),
    "float32 of 0 to 1": lambda: (picture() / 255).astype(np.float32),
    "float64 of 0 to 1": lambda: picture() / 255,
    "float32, a mirrored view": lambda: fractions(np.float32)[:, ::-1],
    "read-only": read_only,
    "read-only float": lambda: np.broadcast_to(fractions(np.float64), picture().shape),
    "mirrored": lambda: picture()[::-1, ::-1],
    "every other pixel": lambda: np.repeat(np.repeat(picture(), 2, 0), 2, 1)[::2, ::2],
    "BGR view": lambda: picture()[..., ::-1],
    "transposed": lambda: np.ascontiguousarray(picture().transpose(1, 0, 2)).transpose(1, 0, 2),
    "Fortran order": lambda: np.asfortranarray(picture()),
    "three of four channels": lambda: np.dstack([picture(), picture()[..., 0]])[..., :3],
    "the network's size": lambda: np.asfortranarray(np.pad(picture(), ((0, 0), (0, 56), (0, 0)))),
}


def both(image, **settings):
    generators = [
        cls(load_sam(shipped_small_sam()), **{**SETTINGS, **settings})
        for cls in (SamAutomaticMaskGenerator, AutomaticMaskGenerator)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [generator.generate(image) for generator in generators]


IN_CROPS = ("float32, fractions", "float64, whole", "read-only", "mirrored")


@pytest.mark.parametrize(
    ("kind", "layers"), [*((k, 0) for k in IMAGES), *((k, 1) for k in IN_CROPS)]
)
def test_masks_are_those_of_stock(kind, layers):
    stock, ours = both(IMAGES[kind](), crop_n_layers=layers, points_per_side=3 - layers)
    assert len(stock) >= 3
    for name in ("segmentation", "bbox", "point_coords", "crop_box"):
        assert [a[name] for a in stock] == [b[name] for b in ours]


def test_floats_above_one_are_another_picture_and_a_warning_tells_it_once():
    """255 * 255 = 65025 = 254 * 256 + 1: white becomes nearly black."""
    whole = picture().astype(np.float32)
    wrapped = (255 * picture().astype(int) % 256).astype(np.uint8)
    generator = AutomaticMaskGenerator(load_sam(shipped_small_sam()), **SETTINGS)
    with pytest.warns(
        UserWarning, match=r"image is float32 with values up to 2.*give uint8"
    ) as caught:
        found = generator.generate(whole)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generator.generate(wrapped) == found
        assert generator.generate(whole) == found
        fresh = AutomaticMaskGenerator(load_sam(shipped_small_sam()), **SETTINGS)
        fresh.generate(np.minimum(whole / 255, 1.0))


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_that_is_resized_on_the_device_is_the_predictors(kind):
    """The way of a GPU, on a CPU; nothing is written to the caller's array."""
    predictor = AutomaticMaskGenerator(load_sam(shipped_small_sam())).predictor
    image, resize = IMAGES[kind](), PillowResize()
    before = image.copy()
    predictor.set_image(image)
    for _ in range(2):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error")
            features = _embed_there(predictor, image, predictor.input_size, resize)
        assert torch.equal(features, predictor.features)
    np.testing.assert_array_equal(image, before)


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
def test_images_that_stock_cannot_use_get_one_line(kind):
    stock, ours = (
        cls(load_sam(shipped_small_sam()), **SETTINGS)
        for cls in (SamAutomaticMaskGenerator, AutomaticMaskGenerator)
    )
    with pytest.raises(Exception):  # noqa: B017, PT011  stock's errors are of many kinds
        stock.generate(REFUSED[kind])
    with pytest.raises(DataError, match=r"image is .*; allowed is .*\(H, W, 3\)") as caught:
        ours.generate(REFUSED[kind])
    assert "\n" not in str(caught.value)
