"""The contrastive loss and the segmentation loss, both in float32 whatever the autocast."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sfss_ray.data.class_sets import IGNORE_INDEX


def pair_loss(
    positive_similarity: Tensor,
    negative_similarity: Tensor,
    temperature: float,
    positive_valid: Tensor | None = None,
    negative_valid: Tensor | None = None,
) -> Tensor:
    """Pulls each anchor to its positives and away from its negatives, one positive at a time.

        l_i = mean over p in P_i of softplus( logsumexp_{n in N_i} (s_in / T) - s_ip / T )

    with s the cosine similarities: InfoNCE for each positive with the anchor's negatives alone in the
    denominator beside it, so that positives do not compete. Re-implementation from the abstract of
    Ren et al. 2024; the form is InfoNCE's (van den Oord et al. 2018) per positive.

    Args:
        positive_similarity: (A, P), in [-1, 1].
        negative_similarity: (A, N), in [-1, 1].
        temperature: T > 0.
        positive_valid, negative_valid: (A, P), (A, N) bool; False entries do not count.

    Returns:
        (A,) losses; 0 for an anchor without a valid positive or without a valid negative.
    """
    push = Push.of(negative_similarity, temperature, negative_valid)
    return pull(positive_similarity, push, temperature, positive_valid)


@dataclass(frozen=True)
class Push:
    """What an anchor's negatives bring to the loss, the same for each kind of positives."""

    strength: Tensor  # (A, 1) logsumexp of s / T over the valid negatives
    any_valid: Tensor  # (A,) bool

    @staticmethod
    def of(similarity: Tensor, temperature: float, valid: Tensor | None = None) -> Push:
        """Of (A, N) similarities and which of them count."""
        negative = similarity.float() / temperature
        if valid is None:
            valid = torch.ones_like(negative, dtype=torch.bool)
        # A finite floor instead of -inf: logsumexp of a row of -inf has NaN gradients.
        floor = torch.finfo(torch.float32).min / 4
        strength = torch.logsumexp(negative.masked_fill(~valid, floor), dim=1, keepdim=True)
        return Push(strength, valid.any(1))


def pull(similarity: Tensor, push: Push, temperature: float, valid: Tensor | None = None) -> Tensor:
    """(A,) pair_loss of (A, P) positive similarities beside the negatives' push."""
    each = F.softplus(push.strength - similarity.float() / temperature)
    if valid is None:
        mean, usable = each.mean(1), push.any_valid
    else:
        mean = (each * valid).sum(1) / valid.sum(1).clamp(min=1)
        usable = push.any_valid & valid.any(1)
    return torch.where(usable, mean, torch.zeros_like(mean))


def segmentation_loss(logits: Tensor, pseudo_labels: Tensor, weights: Tensor) -> Tensor:
    """Sum over pixels of weight * cross entropy; divide by the global weight for the mean.

    Args:
        logits: (B, C, H, W).
        pseudo_labels: (B, H, W) int64 class ids, 255 ignored.
        weights: (B, H, W) float, 0 or more.
    """
    each = F.cross_entropy(
        logits.float(), pseudo_labels, ignore_index=IGNORE_INDEX, reduction="none"
    )
    return (each * weights).sum()


def entropy_sum(logits: Tensor) -> Tensor:
    """Sum over pixels of the entropy of (B, C, H, W) logits, in nats: TENT (Wang et al. 2021)."""
    log_probabilities = F.log_softmax(logits.float(), dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum()
