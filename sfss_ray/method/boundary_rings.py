"""Contrast at the boundaries of masks: the inside of a mask against the other things just around it.

Networks confuse neighbours: a sidewalk with the road beside it, a person with the wall behind. Masks
have sharp boundaries there, which pixels' own labels lack. So the negatives of an anchor are the cells
in a ring around its mask that lie in reliable masks of other classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfss_ray.method.anchors import uniform
from sfss_ray.method.losses import pair_loss
from sfss_ray.method.mask_table import MaskTable
from sfss_ray.method.transfer import send_arrays

RING_WIDTH = 2
"""Cells from a mask's boundary to the outer edge of its ring."""
_STREAM = 15_485_863  # keeps these draws apart from those of the other pairs of the same sample


@dataclass(frozen=True)
class RingPairs:
    """The A anchors of one image with grid indices of their positives and negatives."""

    anchors: np.ndarray  # (A,) inside reliable masks
    positives: np.ndarray  # (A, P) cells inside the same mask
    negatives: np.ndarray  # (A, N) cells of the mask's ring


def draw_ring_pairs(
    table: MaskTable, grid: tuple[int, int], counts: tuple[int, int, int], seed: int
) -> RingPairs:
    """Draw the anchors of one image from the inside of its masks, rare classes first.

    A cell is inside a reliable mask if its four neighbours in the image belong to the mask too. The
    ring of a mask holds the cells at most RING_WIDTH rows and columns from it that belong to reliable
    masks of other classes. Only masks with a ring send anchors. Cells are drawn with weight 1 / cells
    of their class.

    Args:
        table: Of the image's masks.
        grid: (h, w), cells.
        counts: Largest number of anchors, and the numbers of positives and negatives of each.
        seed: Of this image alone.
    """
    num_anchors, num_positives, num_negatives = counts
    owner = np.full(grid[0] * grid[1], -1, np.int64)
    owner[table.cells] = table.owner
    owner = owner.reshape(grid)
    reliable = np.append(table.reliable, False)  # the last entry stands for no mask
    label = np.append(np.where(table.reliable, table.label, -1), -1)

    ring_mask, ring_cell = _rings(owner, label)
    has_ring = np.zeros(len(reliable), bool)
    has_ring[ring_mask] = True
    inside = _is_inside(owner) & reliable[owner] & has_ring[owner]
    candidates = np.flatnonzero(inside)
    if not len(candidates):
        empty = np.zeros(0, np.int64)
        return RingPairs(empty, empty.reshape(0, num_positives), empty.reshape(0, num_negatives))
    generator = torch.Generator().manual_seed(seed * _STREAM % (1 << 63))
    mask_of = owner.ravel()[candidates]
    cells_of_class = np.bincount(label[mask_of])
    noise = -np.log(uniform((len(candidates),), generator).clip(min=1e-9))
    chosen = (noise * cells_of_class[label[mask_of]]).argsort(kind="stable")[:num_anchors]
    anchors, masks = candidates[chosen], mask_of[chosen]
    return RingPairs(
        anchors,
        _draw_of_mask(masks, mask_of, candidates, num_positives, generator),
        _draw_of_mask(masks, ring_mask, ring_cell, num_negatives, generator),
    )


def _rings(owner: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mask and grid index of each ring cell, sorted by mask; a cell counts once for a mask."""
    height, width = owner.shape
    padded = np.pad(owner, RING_WIDTH, constant_values=-1)
    cell = np.arange(height * width)
    pairs = []
    for row in range(2 * RING_WIDTH + 1):
        for column in range(2 * RING_WIDTH + 1):
            near = padded[row : row + height, column : column + width].ravel()
            differs = (label[near] >= 0) & (label[owner.ravel()] >= 0)
            differs &= label[near] != label[owner.ravel()]
            # The cell here lies in the ring of the mask there.
            pairs.append(near[differs] * (height * width) + cell[differs])
    ring = np.unique(np.concatenate(pairs))
    return ring // (height * width), ring % (height * width)


def _is_inside(owner: np.ndarray) -> np.ndarray:
    """Return which cells have neighbours of their own mask alone; beyond the image counts as such."""
    padded = np.pad(owner, 1, mode="edge")
    inside = owner >= 0
    for rows, columns in (
        (slice(0, -2), slice(1, -1)),
        (slice(2, None), slice(1, -1)),
        (slice(1, -1), slice(0, -2)),
        (slice(1, -1), slice(2, None)),
    ):
        inside &= padded[rows, columns] == owner
    return inside


def _draw_of_mask(
    masks: np.ndarray,
    cell_masks: np.ndarray,
    cells: np.ndarray,
    count: int,
    generator: torch.Generator,
) -> np.ndarray:
    """Draw `count` cells of the mask of each anchor, with replacement.

    Args:
        masks: (A,) mask of each anchor, which has a cell.
        cell_masks: (M,) mask of each cell.
        cells: (M,) grid indices.
        count: Draws per anchor.
        generator: Of the image.
    """
    order = cell_masks.argsort(kind="stable")
    first = np.searchsorted(cell_masks[order], masks)
    size = np.searchsorted(cell_masks[order], masks, side="right") - first
    draws = uniform((len(masks), count), generator)
    offset = np.minimum((draws * size[:, None]).astype(np.int64), size[:, None] - 1)
    return cells[order][first[:, None] + offset]


def sum_ring_contrast(
    vectors: Tensor, teacher_cells: Tensor, images: Sequence[RingPairs], temperature: float
) -> tuple[Tensor, Tensor]:
    """Pull anchors to the inside of their mask, away from its ring; the loss is `losses.pair_loss`.

    Args:
        vectors: (A, D) the student's embeddings of all images' anchors, in order.
        teacher_cells: (B, h * w, D) the teacher's embeddings.
        images: The pairs of each image.
        temperature: Above 0.

    Returns:
        () sum over the anchors, and () their number.
    """
    count = vectors.new_tensor(float(len(vectors)))
    if not len(vectors):
        return 0.0 * vectors.sum(), count
    grid_cells = teacher_cells.shape[1]
    positives = np.concatenate([p.positives + b * grid_cells for b, p in enumerate(images)])
    negatives = np.concatenate([p.negatives + b * grid_cells for b, p in enumerate(images)])
    near, far = send_arrays([positives, negatives], vectors.device)
    cells = teacher_cells.flatten(0, 1)
    pulled = torch.einsum("ad,apd->ap", vectors, cells[near])
    pushed = torch.einsum("ad,and->an", vectors, cells[far])
    return pair_loss(pulled, pushed, temperature).sum(), count
