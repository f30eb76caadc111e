"""Masks in label space: what the teacher's pixels say together about the mask they lie in.

Two votes. `majority` gives every pixel of a mask the class that most of its pixels have, as label-space
methods with SAM do. `pooled` weighs a pixel's own evidence with its mask's, as logarithmic opinion
pools do (Genest and Zidek 1986):

    log P(c | pixel) = (1 - w) log q_pixel(c) + w * mean over mask of log q(c) - a log prior(c)

so a mask that joins two things cannot overrule pixels that are sure, and the mean of logarithms asks for
a class that no part of the mask rules out. The prior is the teacher's running class share: dividing by
a power of it keeps common classes from swallowing masks of rare ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfss_ray.config import LossConfig

_FLOOR = 1e-4  # a probability below this is no firmer a denial: one pixel must not veto a mask


class ClassPrior:
    """Running share of each class in the teacher's probabilities; starts uniform.

    Updated with sums over all workers, so every worker holds the same.
    """

    _MEMORY = 0.98  # about the last 50 steps count

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.total = torch.full((num_classes,), 1e-6, dtype=torch.float64, device=device)

    def update(self, sums: Tensor, new_step: bool = True) -> None:
        """Let a batch's (C,) sum of probabilities over pixels, of all workers, in; what was seen
        fades once a step."""
        self.total = (self._MEMORY if new_step else 1.0) * self.total + sums.double()

    def share(self) -> Tensor:
        """(C,) float32, sums to 1."""
        return (self.total / self.total.sum()).float()


def relabel(
    probabilities: Tensor, mask_ids: Tensor, prior: Tensor, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """Pseudo-labels (B, H, W) and their confidence after prior correction and the masks' vote.

    Args:
        probabilities: (B, C, H, W), the teacher's.
        mask_ids: (B, H, W), 0 = no mask: such pixels keep their own label.
        prior: (C,) class shares.
    """
    batch, classes = probabilities.shape[:2]
    q = probabilities.permute(0, 2, 3, 1).reshape(-1, classes)
    scores = q.clamp(min=_FLOOR).log() - config.prior_power * prior.clamp(min=_FLOOR).log()
    confidence, labels = scores.softmax(1).max(1)
    if config.mask_vote != "none":
        masks = _Masks.of(mask_ids)
        if config.mask_vote == "majority":
            evidence = masks.mean(torch.nn.functional.one_hot(labels, classes).to(q.dtype))
            pooled = evidence[masks.owner]
        else:
            evidence = masks.mean(scores)
            pooled = (1 - config.vote_weight) * scores + config.vote_weight * evidence[masks.owner]
            pooled = pooled.softmax(1)
        agree = (labels == evidence.argmax(1)[masks.owner]).to(q.dtype)[:, None]
        pure = masks.mean(agree)[:, 0] >= config.vote_min_purity
        speaks = masks.inside & pure[masks.owner]
        voted_confidence, voted = pooled.max(1)
        labels = torch.where(speaks, voted, labels)
        confidence = torch.where(speaks, voted_confidence, confidence)
    shape = (batch, *probabilities.shape[2:])
    return labels.view(shape), confidence.view(shape)


class _Masks:
    """Pixels of a batch by the mask they lie in; two images never share a mask."""

    def __init__(self, owner: Tensor, inside: Tensor, number: int):
        self.owner, self.inside, self.number = owner, inside, number
        self.pixels = torch.bincount(owner, minlength=number).clamp(min=1)

    @staticmethod
    def of(mask_ids: Tensor) -> _Masks:
        ids = mask_ids.flatten(1)
        reach = int(ids.max()) + 1
        owner = (ids + reach * torch.arange(len(ids), device=ids.device)[:, None]).flatten()
        return _Masks(owner, ids.flatten() > 0, reach * len(ids))

    def mean(self, values: Tensor) -> Tensor:
        """(number, ...) mean of per-pixel values (N, ...) over each mask."""
        total = values.new_zeros((self.number, *values.shape[1:]))
        return total.index_add_(0, self.owner, values) / self.pixels[:, None]
