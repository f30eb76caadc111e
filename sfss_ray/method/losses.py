"""The contrastive loss and the label-space losses, in float32 also under autocast."""

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
    """Pull each anchor towards its positives and push it away from its negatives.

        l_i = mean over p in P_i of softplus( logsumexp_{n in N_i} (s_in / T) - s_ip / T )

    with s the cosine similarities and T the temperature. It is InfoNCE for each positive by itself:
    the denominator holds that positive and the anchor's negatives, so positives do not compete.

    Source: re-implementation from the abstract of Ren et al. 2024; the form is InfoNCE
    (van den Oord et al. 2018) per positive.

    Args:
        positive_similarity: (A, P), in [-1, 1].
        negative_similarity: (A, N), in [-1, 1].
        temperature: Above 0. A lower one weighs the most similar negatives more.
        positive_valid: (A, P) bool. False entries do not count, None counts all.
        negative_valid: (A, N) bool, likewise.

    Returns:
        (A,) losses. An anchor without a valid positive or negative has loss 0 and gradient 0.

    Shapes: A anchors, P positives (1 or more) and N negatives of each. A and N may be 0.
    """
    push = Push.of(negative_similarity, temperature, negative_valid)
    return pull(positive_similarity, push, temperature, positive_valid)


@dataclass(frozen=True)
class Push:
    """The negatives' part of `pair_loss`, which all kinds of positives of an anchor share."""

    strength: Tensor
    """(A, 1) logsumexp of s / T over the valid negatives."""
    any_valid: Tensor
    """(A,) bool: whether the anchor has a valid negative."""

    @staticmethod
    def of(similarity: Tensor, temperature: float, valid: Tensor | None = None) -> Push:
        """Compute it from (A, N) similarities and (A, N) bool, which of them count."""
        scaled = similarity.float() / temperature
        if valid is None:
            valid = torch.ones_like(scaled, dtype=torch.bool)
        # A finite floor instead of -inf: logsumexp of a row of -inf has NaN gradients.
        floor = torch.finfo(torch.float32).min / 4
        strength = torch.logsumexp(scaled.masked_fill(~valid, floor), dim=1, keepdim=True)
        return Push(strength, valid.any(1))


def pull(similarity: Tensor, push: Push, temperature: float, valid: Tensor | None = None) -> Tensor:
    """Return `pair_loss` (A,) of (A, P) positive similarities against a push computed before."""
    per_positive = F.softplus(push.strength - similarity.float() / temperature)
    if valid is None:
        mean, usable = per_positive.mean(1), push.any_valid
    else:
        mean = (per_positive * valid).sum(1) / valid.sum(1).clamp(min=1)
        usable = push.any_valid & valid.any(1)
    return torch.where(usable, mean, torch.zeros_like(mean))


def segmentation_loss(logits: Tensor, pseudo_labels: Tensor, weights: Tensor) -> Tensor:
    """Pull the logits of each pixel towards its label: weighted cross entropy, summed over pixels.

        l = sum over pixels i of w_i * -log softmax(logits_i)[label_i]

    The caller divides by the weight of all workers for a mean, see `collective.global_mean`.

    Args:
        logits: (B, C, H, W).
        pseudo_labels: (B, H, W) int64 class ids, 255 ignored.
        weights: (B, H, W) float, 0 or more.

    Returns:
        () float32, 0 if no pixel has a label and a weight.

    Shapes: B images, C classes, H x W pixels.
    """
    per_pixel = F.cross_entropy(
        logits.float(), pseudo_labels, ignore_index=IGNORE_INDEX, reduction="none"
    )
    return (per_pixel * weights).sum()


def rule_out_sum(logits: Tensor, plausible: Tensor, chosen: Tensor) -> Tensor:
    """Push chosen pixels away from the classes that are not plausible for them, summed over pixels.

        l_i = logsumexp over all classes c of z_i . w_c  -  logsumexp over plausible c of z_i . w_c

    with z_i . w_c the logits. It is InfoNCE with one vector per class, the classifier's own: the
    plausible classes are positives together, so none of them is preferred, and all others are
    negatives. It equals - log of the probability of the plausible classes. Source: partial-label
    learning by the likelihood of the candidate set (Jin and Ghahramani 2002), as a contrast.

    Args:
        logits: (B, C, H, W).
        plausible: (B, k, H, W) int64 class ids, k different ones for each pixel.
        chosen: (B, H, W) bool, the pixels that count.

    Returns:
        () float32, 0 without chosen pixels, and 0 where all classes are plausible.

    Shapes: B images, C classes, H x W pixels, k plausible classes.
    """
    chosen_logits = logits.float().permute(0, 2, 3, 1)[chosen]
    plausible_logits = chosen_logits.gather(1, plausible.permute(0, 2, 3, 1)[chosen])
    return (chosen_logits.logsumexp(1) - plausible_logits.logsumexp(1)).sum()


def entropy_sum(logits: Tensor) -> Tensor:
    """Push every pixel towards a confident prediction: entropy in nats, summed over pixels.

        H = sum over pixels of - sum over classes c of p(c) * log p(c)

    Source: TENT (Wang et al. 2021).

    Args:
        logits: (B, C, H, W).

    Returns:
        () float32, 0 without pixels.

    Shapes: B images, C classes, H x W pixels.
    """
    log_probabilities = F.log_softmax(logits.float(), dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum()
