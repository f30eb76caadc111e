"""The teacher's predictions for each mask: class, confidence, purity and prototype.

Nothing here is random. The pairs are drawn from these tables in anchors.py and pairs.py.
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
class CellPredictions:
    """The teacher's predictions for the grid cells of B images."""

    probabilities: Tensor  # (B, h * w, C)
    confidence: Tensor  # (B, h * w) highest probability of each cell
    labels: Tensor  # (B, h * w) its class, the first of equals

    @staticmethod
    def of(probabilities: Tensor) -> CellPredictions:
        """Compute them from probabilities (B, C, h, w), on their device."""
        rows = probabilities.float().flatten(-2).transpose(-2, -1).contiguous()
        return CellPredictions(rows, *rows.max(-1))


@dataclass(frozen=True)
class MaskTable:
    """The K masks of one image, described by the teacher's predictions for their cells.

    `cells` are indices into the h * w grid, sorted by mask. Those of mask k are
    `cells[start[k] : start[k] + count[k]]`.

    Vectors are tensors on the networks' device. All else are NumPy arrays: a step makes a hundred small
    calls with them, and each costs a quarter of PyTorch's.
    """

    ids: np.ndarray  # (K,) mask ids, rising
    cells: np.ndarray  # (M,) grid index
    owner: np.ndarray  # (M,) mask index of each cell
    start: np.ndarray  # (K,)
    count: np.ndarray  # (K,)
    probabilities: np.ndarray  # (K, C) mean over the mask's cells
    label: np.ndarray  # (K,) argmax of probabilities
    purity: np.ndarray  # (K,) float32 share of cells whose argmax is the mask's label
    confidence: np.ndarray  # (K,) mean probability of label
    reliable: np.ndarray  # (K,) bool
    merged: np.ndarray  # (K,) bool: joins two classes, so it gives no anchors and no prototype
    weighted_sum: Tensor  # (K, D) sum of confidence * embedding
    prototype: Tensor  # (K, D) its direction
    cell_confidence: np.ndarray  # (M,) teacher's highest probability
    cell_label: np.ndarray  # (M,) teacher's argmax

    def __len__(self) -> int:
        return len(self.count)


@dataclass(frozen=True)
class MaskOrigins:
    """The images that the masks of a table come from, as class-mix pastes masks of a neighbour."""

    images: np.ndarray  # (K,) number of the image that a mask comes from
    keys: np.ndarray  # (K,) identity of the mask, for a pasted copy that of its original
    at_home: np.ndarray  # (K,) bool: not a pasted copy

    @staticmethod
    def unmixed(table: MaskTable, image: int, first_key: int) -> MaskOrigins:
        """Return the origins in an image without pasted masks, with keys from `first_key` upwards."""
        masks = np.arange(len(table))
        return MaskOrigins(np.full_like(masks, image), first_key + masks, masks >= 0)


def describe_masks(
    cell_ids: Tensor,
    predictions: CellPredictions,
    embeddings: Tensor,
    thresholds: Tensor,
    config: PairConfig,
) -> list[MaskTable]:
    """Describe the masks of B images by the teacher's predictions.

    A mask is reliable if it has `min_cells` cells, `min_purity` of them of the mask's own class, and its
    confidence reaches the class's threshold. It is merged if two classes each hold `merged_share` of
    its cells at `merged_confidence`. A merged mask is never reliable.

    Args:
        cell_ids: (B, h, w) mask ids, 0 = none, on the CPU.
        predictions: Of all cells, on the CPU.
        embeddings: (B, h * w, D) of the teacher, L2-normalised, on the networks' device.
        thresholds: (C,) confidence a mask of a class must reach to be reliable, on the CPU.
        config: Of the pairs.

    Returns:
        A table for each image.
    """
    images, grid_cells = embeddings.shape[:2]
    masks = [_MaskCells.of(cell_ids[b]) for b in range(images)]
    sizes = [len(image_masks.ids) for image_masks in masks]
    first = np.cumsum([0, *sizes])
    # All images' vectors at once, because many small kernels would keep a GPU waiting.
    cells, owners, weights = send_arrays(
        [
            np.concatenate([b * grid_cells + m.cells for b, m in enumerate(masks)]),
            np.concatenate([first[b] + m.owner for b, m in enumerate(masks)]),
            np.concatenate(
                [predictions.confidence[b].numpy()[m.cells] for b, m in enumerate(masks)]
            ),
        ],
        embeddings.device,
    )
    vectors = embeddings.flatten(0, 1).index_select(0, cells).float()
    weighted_sum = _sum_by_owner(owners, weights[:, None] * vectors, sum(sizes))
    prototypes = F.normalize(weighted_sum, dim=1).split(sizes)
    return [
        MaskTable(
            **_class_statistics(predictions, b, masks[b], thresholds, config),
            weighted_sum=image_sum,
            prototype=prototypes[b],
        )
        for b, image_sum in enumerate(weighted_sum.split(sizes))
    ]


@dataclass(frozen=True)
class _MaskCells:
    """The K masks of an image and their M cells."""

    ids: np.ndarray  # (K,) rising
    count: np.ndarray  # (K,) cells of each
    cells: np.ndarray  # (M,) grid index, mask by mask
    owner: np.ndarray  # (M,) mask index

    @staticmethod
    def of(cell_ids: Tensor) -> _MaskCells:
        """Find them in a map (h, w) of mask ids."""
        flat = cell_ids.numpy().ravel()
        cells_of_id = np.bincount(flat)
        cells_of_id[0] = 0
        ids = np.flatnonzero(cells_of_id)
        count = cells_of_id[ids]
        # Sorted by id, the cells without a mask come first.
        cells = stable_order(flat)[len(flat) - int(count.sum()) :]
        return _MaskCells(ids, count, cells, np.repeat(np.arange(len(ids)), count))


def _class_statistics(
    predictions: CellPredictions,
    image: int,
    masks: _MaskCells,
    thresholds: Tensor,
    config: PairConfig,
) -> dict[str, np.ndarray]:
    """Return all fields of an image's table but its vectors."""
    ids, count, cells, owner = masks.ids, masks.count, masks.cells, masks.owner
    cell_confidence = predictions.confidence[image].numpy()[cells]
    cell_label = predictions.labels[image].numpy()[cells]
    q = predictions.probabilities[image].index_select(0, torch.from_numpy(cells))
    total = _sum_by_owner(torch.from_numpy(owner), q, len(ids)).numpy()
    mean = total / count[:, None].astype(np.float32)
    label, confidence = mean.argmax(1), mean.max(1)
    # Bincounts take one pass over the cells, where sums of one-hot rows would take C.
    classes = mean.shape[1]
    purity = _shares_of_cells(cell_label == label[owner], owner, count)[:, 0]
    confident = cell_confidence >= config.merged_confidence
    confident_share = _shares_of_cells(confident, owner * classes + cell_label, count, classes)
    merged = (confident_share >= config.merged_share).sum(1) >= 2
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


def _sum_by_owner(owner: Tensor, rows: Tensor, owners: int) -> Tensor:
    total = rows.new_zeros((owners, *rows.shape[1:]))
    return total.index_add_(0, owner, rows)


def _shares_of_cells(
    chosen: np.ndarray, group: np.ndarray, count: np.ndarray, classes: int = 1
) -> np.ndarray:
    """Return which share of each mask's cells is chosen, by class: (K, classes) float32.

    Args:
        chosen: (M,) bool.
        group: (M,) mask index * classes + class of each cell.
        count: (K,) cells of each mask.
        classes: Groups per mask.
    """
    chosen_cells = np.bincount(group, weights=chosen, minlength=len(count) * classes)
    shares = chosen_cells.reshape(len(count), classes).astype(np.float32)
    return shares / count[:, None].astype(np.float32)
