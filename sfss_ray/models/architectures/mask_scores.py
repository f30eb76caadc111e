"""Class scores of networks that predict a set of masks with a class each."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_SCORE = 1e-6
"""Scores are clamped to this from below, so that logits stay finite: log(1e-6) = -13.8."""


def class_logits(class_queries_logits: Tensor, masks_queries_logits: Tensor) -> Tensor:
    """Return the logits (B, C, h, w) of the classes of every pixel, the log of their scores.

    The score of class c at pixel p is summed over the queries q,

        score(c, p) = sum over q of P(c | q) * sigmoid(mask(q, p)),

    where P(. | q) is the softmax over the C classes and the class `no object`, which is left out
    (MaskFormer, Cheng et al., NeurIPS 2021, semantic inference; Mask2Former, OneFormer and EoMT use the
    same). Scores do not sum to 1. Their log makes the softmax over classes score(c, p) divided by the
    sum of the scores, and leaves the order of the classes as it is.

    Args:
        class_queries_logits: (B, Q, C + 1), the last for `no object`.
        masks_queries_logits: (B, Q, h, w).
    """
    # Half precision would round small scores to 0.
    with torch.autocast(class_queries_logits.device.type, enabled=False):
        class_shares = class_queries_logits.float().softmax(-1)[..., :-1]
        mask_shares = masks_queries_logits.float().sigmoid()
        scores = torch.einsum("bqc,bqhw->bchw", class_shares, mask_shares)
        return scores.clamp(min=SMALLEST_SCORE).log()
