"""The vote of the masks: pseudo-labels that agree within each mask.

`majority` gives every pixel of a mask the class that most of its pixels have, as label-space methods
with SAM do. Its confidence is the mean probability of that class in the mask. `pooled` weighs a pixel's
own evidence against its mask's, as logarithmic opinion pools do (Genest and Zidek 1986):

    log P(c | pixel) = (1 - w) s_pixel(c) + w * mean over mask of s(c)

with w = `vote_weight` and s the evidence of mask_evidence.py. A mask that joins two objects cannot
overrule confident pixels, and the mean of logarithms prefers a class that no part of the mask rules out.

The opinion of a mask's neighbours (mask_neighbours.py) is part of its evidence. With `neighbour_pixels
agreeing` it reaches only the pixels whose own class is that of the mask's own evidence.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sfss_ray.config import LossConfig
from sfss_ray.method.mask_evidence import Evidence


class ClassPrior:
    """Running share of each class in the teacher's probabilities, uniform at the start.

    Updates are summed over all workers, so every worker has the same prior.
    """

    _DECAY = 0.98  # about the last 50 steps count

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.total = torch.full((num_classes,), 1e-6, dtype=torch.float64, device=device)

    def update(self, sums: Tensor, first_part: bool = True) -> None:
        """Add sums (C,) of probabilities over all workers' pixels. Older sums fade once per step.

        `first_part` is False for the second and later parts of an accumulated batch.
        """
        self.total = (self._DECAY if first_part else 1.0) * self.total + sums.double()

    def share(self) -> Tensor:
        """Return the class shares (C,) float32, which sum to 1."""
        return (self.total / self.total.sum()).float()


def relabel(evidence: Evidence, config: LossConfig) -> tuple[Tensor, Tensor]:
    """Return pseudo-labels (B, H, W) and their confidence after the vote.

    Pixels in no mask keep their own label.

    Args:
        evidence: Of pixels and masks, corrected for the prior.
        config: `mask_vote`, `vote_weight`, `vote_min_purity` and `neighbour_pixels`.
    """
    scores, masks = evidence.of_pixels, evidence.masks
    classes = scores.shape[1]
    confidence, labels = scores.softmax(1).max(1)
    if config.mask_vote != "none":
        if config.mask_vote == "majority":
            of_masks = masks.mean(F.one_hot(labels, classes).to(scores.dtype))
            voted_labels = of_masks.argmax(1)[masks.owner]
            probabilities = masks.mean(scores.softmax(1))[masks.owner]
            voted_confidence = probabilities.gather(1, voted_labels[:, None])[:, 0]
        else:
            of_masks = evidence.of_masks
            voices = _mask_evidence_for_pixels(evidence, labels, config)
            pooled = (1 - config.vote_weight) * scores + config.vote_weight * voices
            voted_confidence, voted_labels = pooled.softmax(1).max(1)
        # An impure mask probably joins objects, so its pixels keep their own labels.
        agrees = (labels == of_masks.argmax(1)[masks.owner]).to(scores.dtype)[:, None]
        pure = masks.mean(agrees)[:, 0] >= config.vote_min_purity
        voting = masks.inside & pure[masks.owner]
        labels = torch.where(voting, voted_labels, labels)
        confidence = torch.where(voting, voted_confidence, confidence)
    return labels.view(evidence.shape), confidence.view(evidence.shape)


def _mask_evidence_for_pixels(evidence: Evidence, labels: Tensor, config: LossConfig) -> Tensor:
    """Return the evidence of each pixel's mask, (P, C), with the neighbours' opinion where it counts.

    Args:
        evidence: Of pixels and masks.
        labels: (P,) likeliest classes of the pixels.
        config: `neighbour_pixels`.
    """
    owner, without_opinion = evidence.masks.owner, evidence.own_of_masks
    of_masks = evidence.of_masks[owner]
    if without_opinion is None or config.neighbour_pixels == "all":
        return of_masks
    agrees = labels == without_opinion.argmax(1)[owner]
    return torch.where(agrees[:, None], of_masks, without_opinion[owner])


def plausible_classes(evidence: Evidence, count: int, by_pixel: bool = False) -> Tensor:
    """Return the likeliest classes of each pixel's mask, (B, k, H, W) with k at most the classes.

    A pixel in no mask has the likeliest classes of its own evidence.

    Args:
        evidence: Of pixels and masks.
        count: k, classes per pixel.
        by_pixel: Every pixel has those of its own evidence, which shows what the masks add.
    """
    count = min(count, evidence.of_pixels.shape[1])
    plausible = evidence.of_pixels.topk(count, dim=1).indices
    if not by_pixel:
        masks = evidence.masks
        of_masks = evidence.of_masks.topk(count, dim=1).indices
        plausible = torch.where(masks.inside[:, None], of_masks[masks.owner], plausible)
    batch, height, width = evidence.shape
    return plausible.view(batch, height, width, count).permute(0, 3, 1, 2)
