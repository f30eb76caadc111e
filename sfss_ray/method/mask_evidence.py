"""Evidence for each class: of every pixel, and pooled over every mask of a batch.

The evidence of a pixel is the logarithm of the teacher's probabilities, corrected for the class prior:

    s_i(c) = log q_i(c) - a log prior(c)

with a = `prior_power`. The evidence of a mask is its mean over the mask's pixels. Dividing by a power of
the prior keeps common classes from swallowing masks of rare ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-4
"""Probabilities below this count as this: one pixel must not veto a mask."""


class MaskPixels:
    """Pixels of a batch by the mask they belong to. Two images never share a mask.

    Attributes:
        owner: (P,) number of each pixel's mask. The pixels of an image without a mask share a number.
        inside: (P,) bool, whether a pixel has a mask.
        ids_per_image: Numbers of an image. Mask `id` of image b has the number b * ids_per_image + id.
        num_masks: Numbers in all, M.
    """

    def __init__(self, mask_ids: Tensor):
        """Number the masks of (B, H, W) ids, 0 = none, through the whole batch."""
        ids = mask_ids.flatten(1)
        self.ids_per_image = int(ids.max()) + 1
        self.num_masks = self.ids_per_image * len(ids)
        first = self.ids_per_image * torch.arange(len(ids), device=ids.device)[:, None]
        self.owner, self.inside = (ids + first).flatten(), ids.flatten() > 0
        self._pixels = torch.bincount(self.owner, minlength=self.num_masks)

    def present(self) -> Tensor:
        """Return the numbers of masks that have a pixel, rising."""
        numbers = self._pixels.nonzero()[:, 0]
        return numbers[numbers % self.ids_per_image > 0]

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of per-pixel values (P, C) over each mask: (M, C)."""
        total = values.new_zeros((self.num_masks, values.shape[1]))
        return total.index_add_(0, self.owner, values) / self._pixels.clamp(min=1)[:, None]


@dataclass(frozen=True)
class Evidence:
    """Evidence for each class, up to a constant for each pixel or mask."""

    of_pixels: Tensor
    """(P, C), P = B * H * W pixels."""
    of_masks: Tensor
    """(M, C)."""
    masks: MaskPixels
    shape: tuple[int, int, int]
    """(B, H, W)."""
    own_of_masks: Tensor | None = None
    """(M, C) without the opinion of neighbours, where `of_masks` has it."""

    @staticmethod
    def gather(probabilities: Tensor, mask_ids: Tensor, prior: Tensor, power: float) -> Evidence:
        """Correct probabilities for the prior, and pool them over the masks.

        Args:
            probabilities: (B, C, H, W), the teacher's.
            mask_ids: (B, H, W), 0 = no mask.
            prior: (C,) class shares.
            power: Of the prior, 0 or more.
        """
        batch, classes, height, width = probabilities.shape
        q = probabilities.permute(0, 2, 3, 1).reshape(-1, classes)
        scores = q.clamp(min=FLOOR).log() - power * prior.clamp(min=FLOOR).log()
        masks = MaskPixels(mask_ids)
        return Evidence(scores, masks.mean(scores), masks, (batch, height, width))
