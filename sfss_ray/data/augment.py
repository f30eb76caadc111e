"""Augmentation: random crops shared by an image, its labels and its masks, and strong views."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np

from sfss_ray.config import AugmentConfig

SMALLEST_CROP = 32
"""Sides that `crop_size` may have, in pixels, at least."""


@dataclass(frozen=True)
class Geometry:
    """The position and zoom of a crop in its image.

    Output pixel (i, j) samples the image at (top + (i + .5) / scale - .5, left + (j + .5) / scale - .5),
    with j mirrored if `flip` is set.
    """

    top: float
    left: float
    scale: float
    flip: bool
    size: tuple[int, int]
    """(height, width) of the crop."""

    def rows(self) -> np.ndarray:
        """Return the (H,) sampled rows of the image, float32 in pixels."""
        return (self.top + (np.arange(self.size[0]) + 0.5) / self.scale - 0.5).astype(np.float32)

    def columns(self) -> np.ndarray:
        """Return the (W,) sampled columns of the image, float32 in pixels."""
        steps = np.arange(self.size[1])[:: -1 if self.flip else 1]
        return (self.left + (steps + 0.5) / self.scale - 0.5).astype(np.float32)

    def window(self, image_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return (top, left, height, width) of the pixels that nearest-neighbour sampling reads."""
        rows, columns = self.nearest_pixels(image_size)
        first_row, first_column = int(rows.min()), int(columns.min())
        height, width = int(rows.max()) - first_row + 1, int(columns.max()) - first_column + 1
        return first_row, first_column, height, width

    def nearest_pixels(self, image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return int64 (H,) rows and (W,) columns of the pixels that nearest sampling reads."""
        return (
            self._nearest(self.rows(), image_size[0]),
            self._nearest(self.columns(), image_size[1]),
        )

    @staticmethod
    def _nearest(positions: np.ndarray, length: int) -> np.ndarray:
        return np.clip(np.floor(positions + 0.5).astype(np.int64), 0, length - 1)

    def apply_to_image(self, image: np.ndarray) -> np.ndarray:
        """Return the bilinear crop of a (H, W, 3) image."""
        rows, columns = self.rows(), self.columns()
        # Only the pixels that are read: remap takes no side of 32768 pixels or more.
        first_row, end_row = _read_range(rows)
        first_column, end_column = _read_range(columns)
        read_pixels = image[first_row:end_row, first_column:end_column]
        x, y = np.meshgrid(columns - first_column, rows - first_row)
        return cv2.remap(read_pixels, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def apply_to_ids(
        self, ids: np.ndarray, image_size: tuple[int, int], origin: tuple[int, int] = (0, 0)
    ) -> np.ndarray:
        """Return the nearest-neighbour crop of an id map.

        Args:
            ids: The whole map, or a part that covers `window`.
            image_size: (height, width) of the whole map.
            origin: (row, column) of the first pixel of `ids` in the whole map.
        """
        rows, columns = self.nearest_pixels(image_size)
        # Two calls of take are three times as fast as indexing with both arrays.
        ids = ids.take(rows - origin[0], axis=0)
        return ids.take(columns - origin[1], axis=1)


def _read_range(positions: np.ndarray) -> tuple[int, int]:
    """Return the first and one after the last pixel that bilinear sampling reads along one axis."""
    return max(0, int(np.floor(positions.min()))), int(np.ceil(positions.max())) + 2


def fit_crop(config: AugmentConfig, multiple: int) -> AugmentConfig:
    """Return a config whose crop is rounded down to multiples of a network's size, 32 or more pixels.

    Crops may have any size, so nothing is padded in training. A size that is still open stays open.

    Args:
        config: `crop_size` is used.
        multiple: Sides of the network's input must be multiples of this number of pixels.
    """
    if config.crop_size is None:
        return config
    fewest = -(-SMALLEST_CROP // multiple)
    height, width = (multiple * max(fewest, side // multiple) for side in config.crop_size)
    return dataclasses.replace(config, crop_size=(height, width))


def draw_geometry(
    config: AugmentConfig, image_size: tuple[int, int], rng: np.random.Generator
) -> Geometry:
    """Draw a random zoom, position and mirroring of a crop.

    The zoom is log-uniform in `scale_range`, and raised where the image would not fill the crop.

    Args:
        config: `crop_size`, `scale_range`, `max_size` and `flip` are used.
        image_size: (height, width) of the image.
        rng: The source of random numbers.
    """
    crop_size = config.chosen_crop_size
    low, high = np.log(_scale_range(config, image_size))
    min_scale = max(c / s for c, s in zip(crop_size, image_size, strict=True))
    scale = max(float(np.exp(rng.uniform(low, high))), min_scale)
    slack = [s - c / scale for c, s in zip(crop_size, image_size, strict=True)]
    row, column = (float(rng.uniform(0, max(pixels, 0.0))) for pixels in slack)
    flip = bool(config.flip and rng.random() < 0.5)
    return Geometry(row, column, scale, flip, crop_size)


def _scale_range(config: AugmentConfig, image_size: tuple[int, int]) -> tuple[float, float]:
    """Return the range of zooms relative to the image itself, whatever size `scale_range` refers to."""
    low, high = config.scale_range
    if config.max_size is None:
        return low, high
    shrink = min(1.0, config.max_size / max(image_size))
    return low * shrink, high * shrink


def strong_view(image: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """Return a uint8 (H, W, 3) image with random colour jitter, grey and blur; geometry is unchanged.

    Args:
        image: uint8 (H, W, 3) RGB.
        config: Strengths and probabilities of the changes.
        rng: The source of random numbers.
    """
    # All random numbers are drawn even if unused, so that one option does not change the others.
    chance = rng.random(3)
    brightness, contrast, saturation = 1 + config.jitter * rng.uniform(-1, 1, 3)
    hue, sigma = config.hue * rng.uniform(-1, 1), rng.uniform(0.15, 1.15)
    if chance[0] < config.jitter_probability:
        image = _jitter(image, brightness, contrast, saturation, hue)
    if chance[1] < config.grey_probability:
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    if chance[2] < config.blur_probability:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    return image


def _jitter(
    image: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float
) -> np.ndarray:
    """Shift the hue, then scale brightness, contrast and saturation, in this order."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)  # hue in 0..179 for uint8
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + round(hue * 180)) % 180
    values = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).astype(np.float32) * brightness
    mean = values.mean()
    values = (values - mean) * contrast + mean
    grey = values @ np.array([0.299, 0.587, 0.114], np.float32)
    values = (values - grey[..., None]) * saturation + grey[..., None]
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)
