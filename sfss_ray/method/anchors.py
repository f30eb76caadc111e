"""Drawing anchors: the student's cells that are pulled and pushed in a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfss_ray.config import PairConfig
from sfss_ray.method.mask_table import MaskOrigins, MaskTable
from sfss_ray.method.sorting import stable_order


@dataclass(frozen=True)
class ImageAnchors:
    """The anchors of one image, with what their pairs are drawn from."""

    table: MaskTable
    origins: MaskOrigins
    anchors: np.ndarray
    """(A,) positions in `table.cells`, from `draw_anchors`."""
    generator: torch.Generator
    """Of this image alone, on the CPU, so that the number of workers changes no draw."""

    @property
    def cells(self) -> np.ndarray:
        """(A,) grid indices of the anchors."""
        return self.table.cells[self.anchors]


def draw_anchors(
    table: MaskTable,
    student_labels: Tensor,
    thresholds: Tensor,
    config: PairConfig,
    generator: torch.Generator,
) -> np.ndarray:
    """Draw the anchors of an image.

    Each mask sends up to `anchors_per_mask` of its cells, half of them hard. A cell is hard if the
    student disagrees with the mask's class, or if the teacher is unsure of the cell. Among these cells,
    `anchors_per_image` are drawn with weight 1 / sqrt(cells of the mask * cells of its class). Merged
    masks and masks of a single cell send none.

    Args:
        table: Of the image's masks.
        student_labels: (h * w,) the student's argmax, on the CPU.
        thresholds: (C,) confidence below which the teacher is unsure.
        config: Of the pairs.
        generator: CPU generator of this image alone.

    Returns:
        (A,) positions in `table.cells`.
    """
    # Two draws: the number that selects a cell within its mask must not also favour it when masks
    # compete for the image's anchors.
    within_mask, within_image = (uniform((len(table.cells),), generator) for _ in range(2))
    owner, count = table.owner, table.count
    usable = (count >= 2) & ~table.merged
    cell_class = table.label[owner]
    unsure = table.cell_confidence < thresholds.numpy()[cell_class]
    hard = (student_labels.numpy()[table.cells] != cell_class) | unsure

    # Where a mask has too few cells of one kind, the other kind fills its quota.
    hard_count = np.bincount(owner, weights=hard, minlength=len(count)).astype(np.int64)
    easy_count = count - hard_count
    quota = config.anchors_per_mask
    hard_quota = np.maximum(quota // 2, quota - easy_count)
    easy_quota = np.maximum(quota - quota // 2, quota - hard_count)
    group = owner * 2 + ~hard  # hard cells of a mask before its easy ones
    group_quota = (np.stack([hard_quota, easy_quota], 1) * usable[:, None]).ravel()
    group_start = np.stack([table.start, table.start + hard_count], 1).ravel()
    rank = _rank_by_group(group, within_mask) - group_start[group]

    eligible = np.flatnonzero(rank < group_quota[group])
    cells_of_class = np.bincount(table.label, weights=count * usable)
    mask = owner[eligible]
    mask_cells = count[mask].astype(np.float32)
    class_cells = cells_of_class[table.label[mask]].astype(np.float32)
    # Sampling without replacement in proportion to weight: the smallest of -log(u) / weight.
    key = -np.log(within_image[eligible].clip(min=1e-9)) * np.sqrt(mask_cells * class_cells)
    return eligible[key.argsort(kind="stable")[: config.anchors_per_image]]


def _rank_by_group(group: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return the rank (M,) of each cell by group, then noise.

    A float32 in [0, 1) has 24 bits, so group and noise fit one integer.
    """
    order = stable_order((group << 24) + (noise * (1 << 24)).astype(np.int64))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> np.ndarray:
    """Draw float32 numbers in [0, 1)."""
    return torch.rand(shape, generator=generator).numpy()
