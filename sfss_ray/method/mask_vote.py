"""The vote of the masks: pseudo-labels that agree within each mask.

`majority` gives every pixel of a mask the class that most of its pixels have, as label-space methods
with SAM do. `pooled` weighs a pixel's own evidence against its mask's, as logarithmic opinion pools do
(Genest and Zidek 1986):

    log P(c | pixel) = (1 - w) log q_pixel(c) + w * mean over mask of log q(c) - a log prior(c)

with w = `vote_weight` and a = `prior_power`. A mask that joins two objects cannot overrule confident
pixels, and the mean of logarithms prefers a class that no part of the mask rules out. The prior is the
teacher's running class share: dividing by a power of it keeps common classes from swallowing masks of
rare ones.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sfss_ray.config import LossConfig

_FLOOR = 1e-4  # probabilities below this count as this: one pixel must not veto a mask


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


def relabel(
    probabilities: Tensor, mask_ids: Tensor, prior: Tensor, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """Return pseudo-labels (B, H, W) and their confidence after prior correction and vote.

    Args:
        probabilities: (B, C, H, W), the teacher's.
        mask_ids: (B, H, W), 0 = no mask: such pixels keep their own label.
        prior: (C,) class shares.
        config: `mask_vote`, `vote_weight`, `vote_min_purity` and `prior_power`.
    """
    batch, classes = probabilities.shape[:2]
    q = probabilities.permute(0, 2, 3, 1).reshape(-1, classes)
    scores = q.clamp(min=_FLOOR).log() - config.prior_power * prior.clamp(min=_FLOOR).log()
    confidence, labels = scores.softmax(1).max(1)
    if config.mask_vote != "none":
        masks = _MaskPixels.of(mask_ids)
        if config.mask_vote == "majority":
            evidence = masks.mean(F.one_hot(labels, classes).to(q.dtype))
            pooled = evidence[masks.owner]
        else:
            evidence = masks.mean(scores)
            pooled = (1 - config.vote_weight) * scores + config.vote_weight * evidence[masks.owner]
            pooled = pooled.softmax(1)
        # An impure mask probably joins objects, so its pixels keep their own labels.
        agrees = (labels == evidence.argmax(1)[masks.owner]).to(q.dtype)[:, None]
        pure = masks.mean(agrees)[:, 0] >= config.vote_min_purity
        voting = masks.inside & pure[masks.owner]
        voted_confidence, voted_labels = pooled.max(1)
        labels = torch.where(voting, voted_labels, labels)
        confidence = torch.where(voting, voted_confidence, confidence)
    shape = (batch, *probabilities.shape[2:])
    return labels.view(shape), confidence.view(shape)


class _MaskPixels:
    """Pixels of a batch by the mask they belong to. Two images never share a mask."""

    def __init__(self, owner: Tensor, inside: Tensor, num_masks: int):
        self.owner, self.inside, self.num_masks = owner, inside, num_masks
        self.pixels = torch.bincount(owner, minlength=num_masks).clamp(min=1)

    @staticmethod
    def of(mask_ids: Tensor) -> _MaskPixels:
        """Number the masks of (B, H, W) ids through the whole batch."""
        ids = mask_ids.flatten(1)
        ids_per_image = int(ids.max()) + 1
        first = ids_per_image * torch.arange(len(ids), device=ids.device)[:, None]
        return _MaskPixels((ids + first).flatten(), ids.flatten() > 0, ids_per_image * len(ids))

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of per-pixel values (N, ...) over each mask: (num_masks, ...)."""
        total = values.new_zeros((self.num_masks, *values.shape[1:]))
        return total.index_add_(0, self.owner, values) / self.pixels[:, None]
