"""A model's own mask decoder, run in batches of points and otherwise unchanged.

It serves decoders whose algebra is not known here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sfss_ray.masks.sam.decoder import DecodedPoints

Decode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps foreground points (B, 2) to logits (B, M, h, w) and predicted IoUs (B, M)."""


class ModuleDecoder:
    """Decodes points by calls of a model.

    Args:
        decode: calls the model.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode

    def decode(self, points: Tensor, pred_iou_thresh: float | None) -> DecodedPoints:
        """Return the masks of foreground points (B, 2), (x, y) in pixels of the model input.

        Only masks with a predicted IoU above `pred_iou_thresh` are returned, or all if it is None.
        """
        logits, predicted_iou = self._decode(points)
        predicted_iou = predicted_iou.float()
        flat = predicted_iou.flatten()
        threshold = -torch.inf if pred_iou_thresh is None else pred_iou_thresh
        passed = torch.nonzero((flat > threshold) | (pred_iou_thresh is None))[:, 0]
        low_size = (logits.shape[-2], logits.shape[-1])
        return DecodedPoints(predicted_iou, passed, logits.flatten(0, 1)[passed].float(), low_size)
