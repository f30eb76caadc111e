"""Random crops and strong views."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sfss_ray.config import AugmentConfig
from sfss_ray.data.augment import Geometry, draw_geometry, fit_crop, strong_view


def coordinate_image(height: int, width: int) -> np.ndarray:
    """Return float32 (H, W, 3) pixels that contain their own row and column."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return np.dstack([rows, columns, rows])


def test_a_crop_samples_the_positions_of_the_formula():
    geometry = Geometry(top=3.25, left=5.5, scale=1.6, flip=False, size=(8, 12))
    crop = geometry.apply_to_image(coordinate_image(40, 50))
    for i, j in ((0, 0), (7, 11), (3, 4)):
        row = 3.25 + (i + 0.5) / 1.6 - 0.5
        column = 5.5 + (j + 0.5) / 1.6 - 0.5
        # OpenCV interpolates with positions rounded to 1/32 of a pixel.
        assert crop[i, j, :2] == pytest.approx([row, column], abs=1 / 32)


@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_reads_the_pixels_that_a_sampling_of_the_whole_image_reads(flip):
    image = np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for top, left, scale in ((-2.0, -1.5, 0.7), (13.37, 21.11, 1.9), (33.0, 50.6, 1.0)):
        geometry = Geometry(top, left, scale, flip, (30, 28))
        x, y = np.meshgrid(geometry.columns(), geometry.rows())
        whole = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        assert np.array_equal(geometry.apply_to_image(image), whole)


def test_images_wider_than_a_short_integer_are_cropped():
    image = np.zeros((40, 40_000, 3), np.uint8)
    image[:, 39_990:] = 200
    crop = Geometry(0.0, 39_968.0, 1.0, False, (32, 32)).apply_to_image(image)
    assert crop[:, :22].max() == 0
    assert crop[:, 22:].min() == 200


def test_a_flipped_crop_is_the_mirrored_crop():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    plain = Geometry(2.0, 3.0, 1.25, False, (10, 15))
    flipped = Geometry(2.0, 3.0, 1.25, True, (10, 15))
    assert np.array_equal(flipped.apply_to_image(image), plain.apply_to_image(image)[:, ::-1])
    ids = image[..., 0]
    crop = plain.apply_to_ids(ids, (20, 30))
    assert np.array_equal(flipped.apply_to_ids(ids, (20, 30)), crop[:, ::-1])


def test_the_identity_crop_returns_the_image():
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    identity = Geometry(0.0, 0.0, 1.0, False, (6, 9))
    assert np.array_equal(identity.apply_to_image(image), image)
    assert np.array_equal(identity.apply_to_ids(image[..., 0], (6, 9)), image[..., 0])
    assert identity.window((6, 9)) == (0, 0, 6, 9)


@pytest.mark.parametrize("flip", [False, True])
def test_the_window_is_all_that_a_crop_of_ids_needs(flip):
    ids = np.arange(40 * 50).reshape(40, 50)
    geometry = Geometry(4.7, 11.2, 2.3, flip, (16, 20))
    top, left, height, width = geometry.window((40, 50))
    part = ids[top : top + height, left : left + width]
    expected = geometry.apply_to_ids(ids, (40, 50))
    assert np.array_equal(geometry.apply_to_ids(part, (40, 50), (top, left)), expected)
    for i, j in ((0, 0), (15, 19), (7, 3)):  # nearest neighbour, computed pixel by pixel
        column = 19 - j if flip else j
        nearest = [np.floor(4.7 + (i + 0.5) / 2.3), np.floor(11.2 + (column + 0.5) / 2.3)]
        assert expected[i, j] == ids[int(nearest[0]), int(nearest[1])]


@pytest.mark.parametrize("image_size", [(60, 80), (400, 200), (32, 48), (20, 24)])
def test_random_crops_lie_inside_the_image(image_size):
    config = AugmentConfig(crop_size=(32, 48), scale_range=(0.5, 2.0))
    rng = np.random.default_rng(0)
    for _ in range(50):
        geometry = draw_geometry(config, image_size, rng)
        assert geometry.size == (32, 48)
        bottom = geometry.top + 32 / geometry.scale
        right = geometry.left + 48 / geometry.scale
        assert min(geometry.top, geometry.left) >= 0
        assert bottom <= image_size[0] + 1e-6
        assert right <= image_size[1] + 1e-6


def test_flips_can_be_disabled_and_are_drawn_in_half_of_the_crops():
    rng = np.random.default_rng(0)
    always = AugmentConfig(crop_size=(32, 32), flip=True)
    never = AugmentConfig(crop_size=(32, 32), flip=False)
    assert 60 < sum(draw_geometry(always, (50, 50), rng).flip for _ in range(200)) < 140
    assert not any(draw_geometry(never, (50, 50), rng).flip for _ in range(50))


def test_a_strong_view_without_changes_is_the_image():
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    config = AugmentConfig(jitter_probability=0, grey_probability=0, blur_probability=0)
    assert np.array_equal(strong_view(image, config, np.random.default_rng(1)), image)


def test_grey_views_have_three_equal_channels():
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    config = AugmentConfig(jitter_probability=0, grey_probability=1, blur_probability=0)
    view = strong_view(image, config, np.random.default_rng(1))
    luma = image @ np.array([0.299, 0.587, 0.114])
    assert np.abs(view - luma[..., None]).max() <= 1


def test_every_option_draws_the_same_random_numbers():
    """Changing one option must not shift the random numbers of another or of later images."""
    image = np.zeros((6, 9, 3), np.uint8)
    after = []
    for probability in (0.0, 0.5, 1.0):
        config = AugmentConfig(
            jitter_probability=probability,
            grey_probability=probability,
            blur_probability=probability,
        )
        rng = np.random.default_rng(3)
        view = strong_view(image, config, rng)
        assert (view.shape, view.dtype) == (image.shape, np.uint8)
        after.append(rng.random())
    assert len(set(after)) == 1


@pytest.mark.parametrize(
    ("crop_size", "multiple", "expected"),
    [
        ((100, 150), 1, (100, 150)),
        ((100, 150), 32, (96, 128)),
        ((96, 128), 32, (96, 128)),
        ((40, 50), 64, (64, 64)),
        ((48, 90), 28, (56, 84)),
    ],
)
def test_crops_are_rounded_down_to_multiples(crop_size, multiple, expected):
    config = AugmentConfig(crop_size=crop_size, flip=False)
    assert fit_crop(config, multiple) == AugmentConfig(crop_size=expected, flip=False)
