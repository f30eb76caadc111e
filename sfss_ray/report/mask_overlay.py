"""Masks drawn over their image, a colour and an outline each."""

from __future__ import annotations

import numpy as np

from sfss_ray.errors import DataError

MASK_OPACITY = 0.55


def draw_masks(image: np.ndarray, mask_ids: np.ndarray) -> np.ndarray:
    """Blend a colour per mask over an image and outline each mask; id 0 keeps the plain image.

    A mask id has the same colour in every picture.

    Args:
        image: (H, W, 3) uint8.
        mask_ids: (H, W) int, 0 = no mask.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: the sizes differ.
    """
    if image.shape[:2] != mask_ids.shape:
        raise DataError(
            f"mask_ids are {mask_ids.shape}, the image is {image.shape[:2]}: resize the ids (nearest)"
        )
    ids, inverse = np.unique(mask_ids, return_inverse=True)
    colours = _mask_colours(ids)[inverse.reshape(mask_ids.shape)]
    blended = (1 - MASK_OPACITY) * image + MASK_OPACITY * colours
    inside = mask_ids > 0
    drawn = np.where(inside[..., None], blended, image)
    edge = inside & _borders(mask_ids)
    drawn[edge] = 0.25 * colours[edge] + 0.75 * 255
    return drawn.round().astype(np.uint8)


def _mask_colours(ids: np.ndarray) -> np.ndarray:
    """Return (K, 3) colours of (K,) ids; golden-ratio steps of the hue keep neighbouring ids apart."""
    ids = ids.astype(np.int64)
    hue = (ids * 0.618034) % 1.0
    saturation = np.array([0.85, 0.6, 0.95])[ids % 3]
    value = np.array([1.0, 0.8])[(ids // 3) % 2]
    sextant = (hue[:, None] * 6 + np.array([5, 3, 1])) % 6
    ramp = np.clip(np.minimum(sextant, 4 - sextant), 0, 1)
    return 255 * value[:, None] * (1 - saturation[:, None] * ramp)


def _borders(ids: np.ndarray) -> np.ndarray:
    """Mark the pixels whose right or lower neighbour has another id."""
    border = np.zeros(ids.shape, bool)
    border[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    border[:-1] |= ids[:-1] != ids[1:]
    return border
