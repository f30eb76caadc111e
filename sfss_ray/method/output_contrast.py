"""Contrast of outputs by mask: the student's class probabilities of a mask against the teacher's.

The classes of a mask are compared as a whole, so small masks count as much as large ones, and no mask
needs a label: a mask is pulled to itself in the other view.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sfss_ray.method.collective import gather_rows, global_mean
from sfss_ray.method.losses import pair_loss
from sfss_ray.method.mask_evidence import MaskPixels

TOP_K = 3
"""Masks whose TOP_K likeliest classes are disjoint repel each other. Of few classes it is half of them,
as three of five are never disjoint."""


def contrast_outputs(
    student: Tensor, teacher: Tensor, mask_ids: Tensor, temperature: float
) -> Tensor:
    """Pull a mask's mean output to the teacher's, away from masks that share none of its classes.

        l_k = softplus( logsumexp over masks l of p_k . t_l / T  -  p_k . t_k / T )

    with p_k the mean over mask k of the student's probabilities, t_k the same of the teacher, both
    scaled to length 1, and l the masks of all workers whose TOP_K likeliest classes share none with
    those of k. After OCL (Zhang et al., ICCV 2023), which contrasts outputs of image patches.

    Args:
        student: (B, C, H, W) probabilities for the strong view, with gradient.
        teacher: (B, C, H, W) probabilities for the weak view.
        mask_ids: (B, H, W), 0 = no mask.
        temperature: T, above 0.

    Returns:
        () mean over the masks of all workers, as `global_mean` defines it. Masks without a negative do
        not count. 0 without masks.
    """
    masks = MaskPixels(mask_ids)
    present = masks.present()
    p, t = (masks.mean(_rows(outputs))[present] for outputs in (student, teacher))
    t_of_all = gather_rows(t, t.device)
    negative = ~_share_classes(t, t_of_all)
    p, t, t_of_all = (F.normalize(rows, dim=1) for rows in (p, t, t_of_all))
    loss = pair_loss((p * t).sum(1, keepdim=True), p @ t_of_all.T, temperature, None, negative)
    counted = negative.any(1)
    return global_mean((loss * counted).sum(), counted.float().sum())


def _rows(outputs: Tensor) -> Tensor:
    """(B, C, H, W) -> (B * H * W, C)."""
    return outputs.permute(0, 2, 3, 1).reshape(-1, outputs.shape[1])


def _share_classes(first: Tensor, second: Tensor) -> Tensor:
    """Return (K, L) bool: whether the likeliest classes of rows (K, C) and (L, C) overlap."""
    count = max(1, min(TOP_K, first.shape[1] // 2))
    hot = [
        torch.zeros_like(rows).scatter_(1, rows.topk(count, dim=1).indices, 1.0)
        for rows in (first, second)
    ]
    return hot[0] @ hot[1].T > 0
