"""segment_anything's Sam as a promptable model: the stock network, run by the fast path."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor

from sfss_ray.masks.sam.crop import encode_crop
from sfss_ray.masks.sam.promptable import EncodedCrop
from sfss_ray.masks.sam.resize import PillowResize


class SegmentAnythingModel:
    """A Sam with its predictor. The predictor's state is not changed.

    Args:
        predictor: replaced_part() must find nothing in it.
        resize: keeps what it learns about image sizes.
    """

    kind = "sam"

    def __init__(self, predictor: SamPredictor, resize: PillowResize) -> None:
        self._predictor, self._resize = predictor, resize
        self.input_side: int = predictor.model.image_encoder.img_size

    def has_pixels(self, height: int, width: int) -> bool:
        """Return whether a crop of this size has a pixel at the network's size."""
        shape = self._predictor.transform.get_preprocess_shape(height, width, self.input_side)
        return min(shape) > 0

    def encode(self, crop: NDArray[Any], dtype: torch.dtype) -> EncodedCrop:
        """Run the image encoder as SamPredictor.set_image does.

        Raises:
            ConfigError: the image encoder returns something other than one tensor.
        """
        return encode_crop(self._predictor, crop, dtype, self._resize)
