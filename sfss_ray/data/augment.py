"""One geometry for everything that belongs to an image; weak and strong views of its colours."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sfss_ray.config import AugmentConfig


@dataclass(frozen=True)
class Geometry:
    """Where a crop lies in its image: output pixel (i, j) looks at source position
    (top + (i + .5) / scale - .5, left + (j + .5) / scale - .5), mirrored in j with `flip`.
    """

    top: float
    left: float
    scale: float
    flip: bool
    size: tuple[int, int]

    def rows(self) -> np.ndarray:
        """(H,) source rows looked at, in pixels."""
        return (self.top + (np.arange(self.size[0]) + 0.5) / self.scale - 0.5).astype(np.float32)

    def columns(self) -> np.ndarray:
        """(W,) source columns looked at, in pixels."""
        steps = np.arange(self.size[1])[:: -1 if self.flip else 1]
        return (self.left + (steps + 0.5) / self.scale - 0.5).astype(np.float32)

    def window(self, image_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the source pixels that nearest sampling touches."""
        rows, columns = self.nearest_pixels(image_size)
        top, left = int(rows.min()), int(columns.min())
        return top, left, int(rows.max()) - top + 1, int(columns.max()) - left + 1

    def nearest_pixels(self, image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """(H,) rows and (W,) columns of the source pixels that nearest sampling looks at, int64."""
        return (
            self._nearest(self.rows(), image_size[0]),
            self._nearest(self.columns(), image_size[1]),
        )

    @staticmethod
    def _nearest(positions: np.ndarray, length: int) -> np.ndarray:
        return np.clip(np.floor(positions + 0.5).astype(np.int64), 0, length - 1)

    def apply_to_image(self, image: np.ndarray) -> np.ndarray:
        """Bilinear crop of a (H, W, 3) image."""
        columns, rows = np.meshgrid(self.columns(), self.rows())
        return cv2.remap(image, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def apply_to_ids(
        self, ids: np.ndarray, image_size: tuple[int, int], origin: tuple[int, int] = (0, 0)
    ) -> np.ndarray:
        """Nearest-neighbour crop of an id map, of which `ids` may be the `window` at `origin`."""
        rows, columns = self.nearest_pixels(image_size)
        ids = ids.take(rows - origin[0], axis=0)
        return ids.take(columns - origin[1], axis=1)  # three times as fast as one index


def draw_geometry(
    config: AugmentConfig, image_size: tuple[int, int], rng: np.random.Generator
) -> Geometry:
    """Random zoom, place and mirror; the zoom is raised where the image would not fill the crop."""
    low, high = np.log(_scale_range(config, image_size))
    covering = max(c / s for c, s in zip(config.crop_size, image_size, strict=True))
    scale = max(float(np.exp(rng.uniform(low, high))), covering)
    free = [s - c / scale for c, s in zip(config.crop_size, image_size, strict=True)]
    top, left = (float(rng.uniform(0, max(f, 0.0))) for f in free)
    flip = bool(config.flip and rng.random() < 0.5)
    return Geometry(top, left, scale, flip, config.crop_size)


def _scale_range(config: AugmentConfig, image_size: tuple[int, int]) -> tuple[float, float]:
    """Return the range of zooms relative to the image itself, whatever size `scale_range` refers to."""
    low, high = config.scale_range
    if config.max_size is None:
        return low, high
    shrink = min(1.0, config.max_size / max(image_size))
    return low * shrink, high * shrink


def strong_view(image: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """Jitter, grey and blur a uint8 (H, W, 3) image; pixels stay where they are."""
    # All numbers are drawn whether used or not, so that one knob does not shift another's.
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
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)  # hue in 0..179 for uint8
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + round(hue * 180)) % 180
    values = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).astype(np.float32) * brightness
    mean = values.mean()
    values = (values - mean) * contrast + mean
    grey = values @ np.array([0.299, 0.587, 0.114], np.float32)
    values = (values - grey[..., None]) * saturation + grey[..., None]
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)
