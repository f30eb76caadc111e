"""Pixels of each class of a prediction, in the run lengths of COCO and of CVAT."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sfss_ray.masks.bank.run_lengths import encode_masks, to_coco_string


@dataclass(frozen=True)
class ClassRegion:
    """All pixels of one class in an image."""

    class_index: int
    box: tuple[int, int, int, int]
    """x, y, width, height in pixels, as COCO counts them."""
    pixels: np.ndarray
    """bool (height, width), inside the box."""
    size: tuple[int, int]
    """(H, W) of the image."""

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.pixels))

    def coco_counts(self) -> str:
        """Return COCO's compressed run lengths: column by column, of the whole image."""
        x, y, _, _ = self.box
        return to_coco_string(
            encode_masks([np.asfortranarray(self.pixels)], [(y, x)], self.size)[0]
        )

    def cvat_counts(self) -> list[int]:
        """Return CVAT's run lengths: row by row, inside the box, beginning with background."""
        return encode_masks([self.pixels.T])[0].tolist()


def class_regions(train_ids: np.ndarray) -> list[ClassRegion]:
    """Return the region of each class of a prediction, uint8 (H, W), in the order of the classes."""
    height, width = train_ids.shape
    regions = []
    for index in np.flatnonzero(np.bincount(train_ids.reshape(-1), minlength=1)).tolist():
        pixels = train_ids == index
        x, y, w, h = cv2.boundingRect(pixels.view(np.uint8))
        box = (x, y, w, h)
        regions.append(ClassRegion(index, box, pixels[y : y + h, x : x + w], (height, width)))
    return regions
