"""What the mask generator needs of a network: encode an image once, then answer many points.

Each member of the family, SAM, SAM 2 and SAM 3 from segment_anything or from transformers, is a
PromptableModel. Encoding a crop gives an EncodedCrop. It holds a decoder of points and the facts of
preprocessing: how points scale to the model's input, and how low-resolution logits map back to pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfss_ray.masks.sam.decoder import DecodedPoints


class PointDecoder(Protocol):
    """Turns points of one encoded crop into masks."""

    def decode(self, points: Tensor, pred_iou_thresh: float | None) -> DecodedPoints:
        """Return the masks of foreground points (B, 2), (x, y) in pixels of the model input.

        Only masks with a predicted IoU above `pred_iou_thresh` are made, or all if it is None.
        """
        ...


class LogitDecoder(Protocol):
    """Computes logits in the order of sums of a reference program."""

    def logits(self, points: Tensor, outputs: Tensor) -> Tensor:
        """Return low-resolution logits of one mask per point, float32 (n, h, w).

        Args:
            points: (n, 2), foreground, (x, y) in pixels of the model input; n at least 1.
            outputs: int64 (n,), index among the masks of a point, from 0.
        """
        ...


@dataclass(frozen=True)
class EncodedCrop:
    """A crop after the image encoder: all that is needed to turn points into masks.

    Attributes:
        decoder: the mask decoder with the crop's embedding.
        size: (h, w) of the crop in pixels.
        upsampling_sizes: what an upsampler takes after the size of the logits: the side to which
            logits are enlarged first, (h, w) of the part of it that belongs to the image, and the size
            of the crop. A network without padding has the side of its logits, which then are enlarged
            once.
        point_scale: pixels of the model input per pixel of the crop, in x and in y.
        input_side: longer side of the model input in pixels.
        mask_threshold: pixels with greater logits belong to a mask.
        device: of the model.
        key_bytes: of the image positions of one point in the decoder.
        reference: makes a decoder with the reference's order of sums; None where masks differ by more
            than that, or where the decoder itself has this order.
        embedding: (C, h, w) of the image encoder, the coarsest if there are several.
    """

    decoder: PointDecoder
    size: tuple[int, int]
    upsampling_sizes: tuple[int, tuple[int, int], tuple[int, int]]
    point_scale: tuple[float, float]
    input_side: int
    mask_threshold: float
    device: torch.device
    key_bytes: int
    reference: Callable[[], LogitDecoder] | None = None
    embedding: Tensor | None = None

    @property
    def input_size(self) -> tuple[int, int]:
        """(h, w) of the part of the enlarged logits that belongs to the crop."""
        return self.upsampling_sizes[1]

    @property
    def can_match_stock(self) -> bool:
        """Whether masks differ from the reference's by the order of float32 sums alone."""
        return self.reference is not None

    def to_model_input(self, points: NDArray[Any]) -> Tensor:
        """Convert points (n, 2) from pixels of the crop to pixels of the model input.

        The result has the precision of the points and lies on the model's device.
        """
        scale = np.array([self.point_scale], dtype=points.dtype)
        return torch.as_tensor(points * scale, device=self.device)


class PromptableModel(Protocol):
    """A network of the SAM family.

    Attributes:
        kind: of the network, as recipes and reports name it.
        input_side: longer side of the model input in pixels.
    """

    kind: str
    input_side: int

    def has_pixels(self, height: int, width: int) -> bool:
        """Return whether a crop of this size has a pixel at the network's size."""
        ...

    def encode(self, crop: NDArray[Any], dtype: torch.dtype) -> EncodedCrop:
        """Run the image encoder.

        Args:
            crop: (h, w, 3), RGB, uint8 or floating in [0, 1].
            dtype: torch.float32, or torch.bfloat16 to run under autocast.
        """
        ...
