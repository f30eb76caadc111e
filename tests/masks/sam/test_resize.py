"""Resizing on the device against Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sfss_ray.masks.sam import resize
from sfss_ray.masks.sam.resize import COLUMNS_FIRST, ROWS_FIRST, PillowResize, resize_bilinear


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((128, 256), (512, 1024)),
        ((1024, 2048), (512, 1024)),
        ((360, 480), (192, 256)),
        ((333, 517), (660, 1024)),
        ((700, 41), (1024, 60)),
        ((37, 53), (37, 99)),
        ((64, 64), (64, 64)),
        ((1, 5), (205, 1024)),
        ((3000, 7), (1024, 2)),
    ],
)
def test_every_pixel_equals_pillows(old, new):
    image = noise(old)
    expected = np.asarray(Image.fromarray(image).resize(new[::-1], Image.Resampling.BILINEAR))
    resized = [
        resize_bilinear(torch.from_numpy(image), new, axes) for axes in (ROWS_FIRST, COLUMNS_FIRST)
    ]
    assert all(pixels.dtype == torch.uint8 for pixels in resized)
    assert any(np.array_equal(pixels.numpy(), expected) for pixels in resized)


@pytest.mark.parametrize(("old", "new"), [((300, 20), (102, 7)), ((60, 90), (171, 256))])
def test_the_order_of_the_axes_is_learned_from_the_first_image_that_shows_it(old, new, monkeypatch):
    resizer, device = PillowResize(), torch.device("cpu")
    flat = np.full((*old, 3), 9, np.uint8)
    images = [flat, noise(old), 255 - noise(old)]
    expected = [
        np.asarray(Image.fromarray(i).resize(new[::-1], Image.Resampling.BILINEAR)) for i in images
    ]
    for image, pixels in zip(images[:2], expected, strict=False):
        assert np.array_equal(resizer(image, new, device).numpy(), pixels)
    monkeypatch.setattr(
        resize, "Image", None
    )  # the flat image cannot show the order, the second can
    assert np.array_equal(resizer(images[2], new, device).numpy(), expected[2])


def test_pillow_is_used_if_its_rounding_differs(monkeypatch):
    resizer, device, image = PillowResize(), torch.device("cpu"), noise((40, 30))
    monkeypatch.setattr(resize, "resize_bilinear", lambda image, size, axes: torch.zeros(8, 6, 3))
    expected = np.asarray(Image.fromarray(image).resize((6, 8), Image.Resampling.BILINEAR))
    for _ in range(2):
        assert np.array_equal(resizer(image, (8, 6), device).numpy(), expected)


def noise(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
