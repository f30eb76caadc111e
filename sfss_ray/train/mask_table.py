"""What the teacher says of each mask on the feature grid.

Nothing here is drawn at random; sample_pairs (pairs.py) draws from the tables made here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sfss_ray.config import PairConfig
from sfss_ray.train.devices import send


@dataclass(frozen=True)
class MaskTable:
    """What the teacher says of the K masks of one image. `cells` are indices into the h * w grid,
    sorted by mask; mask k owns `cells[start[k] : start[k] + count[k]]`.
    """

    ids: Tensor  # (K,) mask ids, rising
    cells: Tensor  # (M,) grid index
    owner: Tensor  # (M,) mask index of each cell
    start: Tensor  # (K,)
    count: Tensor  # (K,)
    probabilities: Tensor  # (K, C) mean of the teacher's
    label: Tensor  # (K,) argmax of probabilities
    purity: Tensor  # (K,) share of cells whose own argmax is label
    confidence: Tensor  # (K,) mean probability of label
    reliable: Tensor  # (K,) bool
    merged: Tensor  # (K,) bool: two classes in one mask, left out altogether
    weighted_sum: Tensor  # (K, D) sum of confidence * embedding, on the networks' device
    prototype: Tensor  # (K, D) its direction, on the networks' device
    cell_confidence: Tensor  # (M,) teacher's highest probability
    cell_label: Tensor  # (M,) teacher's argmax

    def __len__(self) -> int:
        return len(self.count)


@dataclass(frozen=True)
class Origins:
    """Where the masks of a table are from: class-mix pastes masks of a neighbour into an image."""

    images: Tensor  # (K,) number of the image that a mask is of
    keys: Tensor  # (K,) of the mask itself: a copy has that of what it is a copy of
    at_home: Tensor  # (K,) bool: no copy

    @staticmethod
    def alone(table: MaskTable, image: int, first_key: int) -> Origins:
        """Of an image that nothing was pasted into; keys are counted up."""
        count = torch.arange(len(table))
        everywhere = torch.ones_like(count, dtype=torch.bool)
        return Origins(torch.full_like(count, image), first_key + count, everywhere)


def describe_masks(
    cell_ids: Tensor,
    probabilities: Tensor,
    embeddings: Tensor,
    thresholds: Tensor,
    config: PairConfig,
) -> MaskTable:
    """Ask the teacher about the masks of one image.

    Args:
        cell_ids: (h, w) mask ids, 0 = none.
        probabilities: (C, h, w), the teacher's.
        embeddings: (h * w, D), the teacher's, L2-normalised; on any device, all else on the CPU.
        thresholds: (C,) confidence a mask of a class must reach to be reliable.

    A mask is reliable if it has `min_cells` cells, `min_purity` of them of its own class, and its
    confidence reaches the class's threshold; merged if two classes each hold `merged_share` of the
    cells at `merged_confidence`.
    """
    flat = cell_ids.flatten()
    inside = flat.nonzero()[:, 0]
    ids, owner = flat[inside].unique(return_inverse=True)
    order = owner.argsort(stable=True)
    cells, owner = inside[order], owner[order]
    masks = int(owner[-1]) + 1 if len(owner) else 0
    count = torch.bincount(owner, minlength=masks)
    q = probabilities.flatten(1).T[cells].float()
    t = embeddings.index_select(0, send(cells, embeddings.device)).float()
    cell_confidence, cell_label = q.max(1)

    mean = _sum_by(owner, q, masks) / count[:, None].clamp(min=1)
    confidence, label = mean.max(1) if masks else (mean.sum(1), mean.sum(1).long())
    # Counts as bincounts of cells: one pass over them, where sums of one-hot rows take C.
    classes = mean.shape[1]
    pure = torch.bincount(owner[cell_label == label[owner]], minlength=masks)
    purity = pure.float() / count.clamp(min=1)
    sure = cell_confidence >= config.merged_confidence
    votes = torch.bincount((owner * classes + cell_label)[sure], minlength=masks * classes)
    sure_share = votes.view(masks, classes).float() / count[:, None].clamp(min=1)
    merged = (sure_share >= config.merged_share).sum(1) >= 2
    reliable = (
        (count >= config.min_cells)
        & (purity >= config.min_purity)
        & (confidence >= thresholds[label])
        & ~merged
    )
    weighted_sum = _sum_by(
        send(owner, t.device), send(cell_confidence[:, None], t.device) * t, masks
    )
    return MaskTable(
        ids=ids,
        cells=cells,
        owner=owner,
        start=count.cumsum(0) - count,
        count=count,
        probabilities=mean,
        label=label,
        purity=purity,
        confidence=confidence,
        reliable=reliable,
        merged=merged,
        weighted_sum=weighted_sum,
        prototype=F.normalize(weighted_sum, dim=1),
        cell_confidence=cell_confidence,
        cell_label=cell_label,
    )


def _sum_by(owner: Tensor, values: Tensor, groups: int) -> Tensor:
    total = values.new_zeros((groups, *values.shape[1:]))
    return total.index_add_(0, owner, values)
