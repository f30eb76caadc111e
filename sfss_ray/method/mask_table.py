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
from sfss_ray.method.sorting import stable_order
from sfss_ray.method.transfer import send_arrays


@dataclass(frozen=True)
class Opinion:
    """What the teacher says of the cells of B images."""

    probabilities: Tensor  # (B, h * w, C)
    confidence: Tensor  # (B, h * w) the highest of them
    label: Tensor  # (B, h * w) whose it is, the first of equals

    @staticmethod
    def of(probabilities: Tensor) -> Opinion:
        """Of (B, C, h, w), wherever they are."""
        rows = probabilities.float().flatten(-2).transpose(-2, -1).contiguous()
        return Opinion(rows, *rows.max(-1))


@dataclass(frozen=True)
class MaskTable:
    """What the teacher says of the K masks of one image. `cells` are indices into the h * w grid,
    sorted by mask; mask k owns `cells[start[k] : start[k] + count[k]]`.

    Vectors are tensors on the networks' device; all else are arrays, as a step makes a hundred small
    calls with them, of which NumPy's cost a quarter of PyTorch's.
    """

    ids: np.ndarray  # (K,) mask ids, rising
    cells: np.ndarray  # (M,) grid index
    owner: np.ndarray  # (M,) mask index of each cell
    start: np.ndarray  # (K,)
    count: np.ndarray  # (K,)
    probabilities: np.ndarray  # (K, C) mean of the teacher's
    label: np.ndarray  # (K,) argmax of probabilities
    purity: np.ndarray  # (K,) float32 share of cells whose own argmax is label
    confidence: np.ndarray  # (K,) mean probability of label
    reliable: np.ndarray  # (K,) bool
    merged: np.ndarray  # (K,) bool: two classes in one mask, left out altogether
    weighted_sum: Tensor  # (K, D) sum of confidence * embedding
    prototype: Tensor  # (K, D) its direction
    cell_confidence: np.ndarray  # (M,) teacher's highest probability
    cell_label: np.ndarray  # (M,) teacher's argmax

    def __len__(self) -> int:
        return len(self.count)


@dataclass(frozen=True)
class Origins:
    """Where the masks of a table are from: class-mix pastes masks of a neighbour into an image."""

    images: np.ndarray  # (K,) number of the image that a mask is of
    keys: np.ndarray  # (K,) of the mask itself: a copy has that of what it is a copy of
    at_home: np.ndarray  # (K,) bool: no copy

    @staticmethod
    def alone(table: MaskTable, image: int, first_key: int) -> Origins:
        """Of an image that nothing was pasted into; keys are counted up."""
        masks = np.arange(len(table))
        return Origins(np.full_like(masks, image), first_key + masks, masks >= 0)


def describe_masks(
    cell_ids: Tensor,
    opinion: Opinion,
    embeddings: Tensor,
    thresholds: Tensor,
    config: PairConfig,
) -> list[MaskTable]:
    """Ask the teacher about the masks of B images: a table of each.

    Args:
        cell_ids: (B, h, w) mask ids, 0 = none.
        opinion: the teacher's, of all cells.
        embeddings: (B, h * w, D), the teacher's, L2-normalised; on any device, all else on the CPU.
        thresholds: (C,) confidence a mask of a class must reach to be reliable.

    A mask is reliable if it has `min_cells` cells, `min_purity` of them of its own class, and its
    confidence reaches the class's threshold; merged if two classes each hold `merged_share` of the
    cells at `merged_confidence`.
    """
    images, area = embeddings.shape[:2]
    masks = [_Masks.of(cell_ids[b]) for b in range(images)]
    sizes = [len(each.ids) for each in masks]
    first = np.cumsum([0, *sizes])
    # All images' vectors at once: a GPU would be asked for a little work many times otherwise.
    cells, owners, weights = send_arrays(
        [
            np.concatenate([b * area + each.cells for b, each in enumerate(masks)]),
            np.concatenate([first[b] + each.owner for b, each in enumerate(masks)]),
            np.concatenate([opinion.confidence[b].numpy()[m.cells] for b, m in enumerate(masks)]),
        ],
        embeddings.device,
    )
    seen = embeddings.flatten(0, 1).index_select(0, cells).float()
    weighted_sum = _sum_by(owners, weights[:, None] * seen, sum(sizes))
    prototypes = F.normalize(weighted_sum, dim=1).split(sizes)
    return [
        MaskTable(
            **_what_is_said(opinion, b, masks[b], thresholds, config),
            weighted_sum=own_sum,
            prototype=prototypes[b],
        )
        for b, own_sum in enumerate(weighted_sum.split(sizes))
    ]


@dataclass(frozen=True)
class _Masks:
    """The K masks of an image and their M cells."""

    ids: np.ndarray  # (K,) rising
    count: np.ndarray  # (K,) cells of each
    cells: np.ndarray  # (M,) grid index, mask by mask
    owner: np.ndarray  # (M,) mask index

    @staticmethod
    def of(cell_ids: Tensor) -> _Masks:
        """Of (h, w) ids."""
        flat = cell_ids.numpy().ravel()
        of_id = np.bincount(flat)
        of_id[0] = 0
        ids = np.flatnonzero(of_id)
        count = of_id[ids]
        cells = stable_order(flat)[len(flat) - int(count.sum()) :]  # those of no mask come first
        return _Masks(ids, count, cells, np.repeat(np.arange(len(ids)), count))


def _what_is_said(
    opinion: Opinion, image: int, masks: _Masks, thresholds: Tensor, config: PairConfig
) -> dict[str, np.ndarray]:
    """The fields of an image's table that are no vectors."""
    ids, count, cells, owner = masks.ids, masks.count, masks.cells, masks.owner
    cell_confidence = opinion.confidence[image].numpy()[cells]
    cell_label = opinion.label[image].numpy()[cells]
    q = opinion.probabilities[image].index_select(0, torch.from_numpy(cells))
    total = _sum_by(torch.from_numpy(owner), q, len(ids)).numpy()
    mean = total / count[:, None].astype(np.float32)
    label, confidence = mean.argmax(1), mean.max(1)
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
    return {
        "ids": ids,
        "cells": cells,
        "owner": owner,
        "start": count.cumsum() - count,
        "count": count,
        "probabilities": mean,
        "label": label,
        "purity": purity,
        "confidence": confidence,
        "reliable": reliable,
        "merged": merged,
        "cell_confidence": cell_confidence,
        "cell_label": cell_label,
    }


def _sum_by(owner: Tensor, values: Tensor, groups: int) -> Tensor:
    total = values.new_zeros((groups, *values.shape[1:]))
    return total.index_add_(0, owner, values)


def _shares_where(
    chosen: np.ndarray, group: np.ndarray, size: np.ndarray, classes: int = 1
) -> np.ndarray:
    """(K, classes) float32: which share of `size` (K, 1) is chosen of each group, of K * classes."""
    found = np.bincount(group, weights=chosen, minlength=len(size) * classes)
    return found.reshape(len(size), classes).astype(np.float32) / size.astype(np.float32)
