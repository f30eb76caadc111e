"""Class-mix between target images: half of one crop's classes, pasted into its neighbour.

After ClassMix (Olsson et al. 2021), between target crops, as no source is at hand. Samples 2i and 2i + 1
of a step are neighbours, so a worker with an even part of the batch mixes as one worker with all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfss_ray.method.cell_grid import cell_means

_STREAM = 7_919  # keeps these draws apart from those of the pairs of the same sample


@dataclass(frozen=True)
class Look:
    """The teacher's view of a batch."""

    probabilities: Tensor  # (B, C, h, w) on the grid
    embeddings: Tensor  # (B, D, h, w)
    labels: Tensor  # (B, H, W) pseudo-labels
    confidence: Tensor  # (B, H, W)


def mix_classes(
    batch: Mapping[str, Tensor],
    look: Look,
    probability: float,
    seed: int,
    align_corners: bool = False,
) -> tuple[dict[str, Tensor], Look]:
    """Batch and look with pasted classes: strong view, mask ids, labels, and the teacher's grid.

    Pasted masks get ids of their own: those above the batch's `own_ids`, which is added. A grid cell
    is pasted where most of its pixels are (`align_corners`: see grid.py). A crop without a neighbour
    stays as it is.
    """
    if probability <= 0:
        return dict(batch), look
    pasted = _pasted_pixels(look.labels, batch["number"], probability, seed)
    neighbour = torch.arange(len(pasted), device=pasted.device) ^ 1
    neighbour = torch.where(neighbour < len(pasted), neighbour, neighbour ^ 1)
    height, width = look.probabilities.shape[-2:]
    cells = cell_means(pasted[:, None].float(), (height, width), align_corners) > 0.5

    def paste(values: Tensor, where: Tensor) -> Tensor:
        return torch.where(where, values[neighbour], values)

    ids = batch["mask_ids"]
    own_ids = ids.max()
    foreign = torch.where(ids > 0, ids + own_ids, ids)[neighbour]
    mixed = dict(batch) | {
        "own_ids": own_ids,
        "strong": paste(batch["strong"], pasted[:, None]),
        "mask_ids": torch.where(pasted, foreign, ids),
    }
    return mixed, replace(
        look,
        probabilities=paste(look.probabilities, cells),
        embeddings=paste(look.embeddings, cells),
        labels=paste(look.labels, pasted),
        confidence=paste(look.confidence, pasted),
    )


def _pasted_pixels(labels: Tensor, numbers: Tensor, probability: float, seed: int) -> Tensor:
    """(B, H, W) bool: pixels of each crop that its neighbour's pixels replace."""
    pasted = torch.zeros_like(labels, dtype=torch.bool)
    for b in range(len(labels) - len(labels) % 2):
        generator = torch.Generator().manual_seed(
            (seed * _STREAM + 1) * 1_000_003 + int(numbers[b])
        )
        if float(torch.rand((), generator=generator)) >= probability:
            continue
        present = labels[b ^ 1].unique()
        order = torch.randperm(len(present), generator=generator).to(present.device)
        chosen = present[order[: (len(present) + 1) // 2]]
        pasted[b] = torch.isin(labels[b ^ 1], chosen)
    return pasted
