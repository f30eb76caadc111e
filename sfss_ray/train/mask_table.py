"""What the teacher says of each mask on the feature grid.

Nothing here is drawn at random; sample_pairs (pairs.py) draws from the tables made here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sfss_ray.config import PairConfig
from sfss_ray.train.devices import send_arrays
from sfss_ray.train.order import stable_order


@dataclass(frozen=True)
class Opinion:
    """What the teacher says of the cells of one image, or with a leading B of several."""

    probabilities: Tensor  # (h * w, C)
    confidence: Tensor  # (h * w,) the highest of them
    label: Tensor  # (h * w,) whose it is, the first of equals

    @staticmethod
    def of(probabilities: Tensor) -> Opinion:
        """Of (C, h, w), or (B, C, h, w), wherever they are."""
        rows = probabilities.float().flatten(-2).transpose(-2, -1).contiguous()
        return Opinion(rows, *rows.max(-1))


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
    opinion: Opinion,
    embeddings: Tensor,
    thresholds: Tensor,
    config: PairConfig,
) -> MaskTable:
    """Ask the teacher about the masks of one image.

    Args:
        cell_ids: (h, w) mask ids, 0 = none.
        opinion: the teacher's, of all h * w cells.
        embeddings: (h * w, D), the teacher's, L2-normalised; on any device, all else on the CPU.
        thresholds: (C,) confidence a mask of a class must reach to be reliable.

    A mask is reliable if it has `min_cells` cells, `min_purity` of them of its own class, and its
    confidence reaches the class's threshold; merged if two classes each hold `merged_share` of the
    cells at `merged_confidence`.
    """
    flat = cell_ids.numpy().ravel()
    of_id = np.bincount(flat)
    of_id[0] = 0
    ids = np.flatnonzero(of_id)
    count = of_id[ids]
    masks, number = len(ids), int(count.sum())
    cells = stable_order(flat)[len(flat) - number :]  # those of no mask come first
    owner = np.repeat(np.arange(masks), count)
    where, whose = torch.from_numpy(cells), torch.from_numpy(owner)
    cell_confidence = opinion.confidence.numpy()[cells]
    cell_label = opinion.label.numpy()[cells]

    size = torch.from_numpy(count)[:, None]
    mean = _sum_by(whose, opinion.probabilities.index_select(0, where), masks) / size
    label = mean.numpy().argmax(1)
    confidence = mean.numpy().max(1)
    # Counts as bincounts of cells: one pass over them, where sums of one-hot rows take C.
    classes = mean.shape[1]
    purity = _shares_where(cell_label == label[owner], owner, count[:, None])[:, 0]
    sure = cell_confidence >= config.merged_confidence
    sure_share = _shares_where(sure, owner * classes + cell_label, count[:, None], classes)
    merged = (sure_share >= config.merged_share).sum(1) >= 2
    reliable = (
        (count >= config.min_cells)
        & (purity >= config.min_purity)
        & (confidence >= thresholds.numpy()[label])
        & ~merged
    )
    places, owners, weights = send_arrays([cells, owner, cell_confidence], embeddings.device)
    seen = embeddings.index_select(0, places).float()
    weighted_sum = _sum_by(owners, weights[:, None] * seen, masks)
    return MaskTable(
        ids=torch.from_numpy(ids),
        cells=where,
        owner=whose,
        start=torch.from_numpy(count.cumsum() - count),
        count=torch.from_numpy(count),
        probabilities=mean,
        label=torch.from_numpy(label),
        purity=torch.from_numpy(purity),
        confidence=torch.from_numpy(confidence),
        reliable=torch.from_numpy(reliable),
        merged=torch.from_numpy(merged),
        weighted_sum=weighted_sum,
        prototype=F.normalize(weighted_sum, dim=1),
        cell_confidence=torch.from_numpy(cell_confidence),
        cell_label=torch.from_numpy(cell_label),
    )


def _sum_by(owner: Tensor, values: Tensor, groups: int) -> Tensor:
    total = values.new_zeros((groups, *values.shape[1:]))
    return total.index_add_(0, owner, values)


def _shares_where(
    chosen: np.ndarray, group: np.ndarray, size: np.ndarray, classes: int = 1
) -> np.ndarray:
    """(K, classes) float32: which share of `size` (K, 1) is chosen of each group, of K * classes."""
    found = np.bincount(group, weights=chosen, minlength=len(size) * classes)
    return found.reshape(len(size), classes).astype(np.float32) / size.astype(np.float32)
