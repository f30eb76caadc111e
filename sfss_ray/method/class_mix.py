"""Class-mix between target crops: half of the classes of one crop, pasted into its neighbour.

After ClassMix (Olsson et al. 2021), but between two target crops because no source images exist.
Samples 2i and 2i + 1 of a step are neighbours, so a worker with an even part of the batch mixes as a
single worker with the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sfss_ray.method.cell_grid import cell_means
from sfss_ray.method.teacher_view import TeacherView

_STREAM = 7_919  # keeps these draws apart from those of the pairs of the same sample


def mix_classes(
    batch: Mapping[str, Tensor],
    view: TeacherView,
    probability: float,
    seed: int,
    align_corners: bool = False,
) -> tuple[dict[str, Tensor], TeacherView]:
    """Paste classes between neighbours: strong view, mask ids, pseudo-labels and the teacher's grid.

    A grid cell is pasted if most of its pixels are. A crop without a neighbour is not changed.

    Args:
        batch: `strong` (B, 3, H, W), `mask_ids` (B, H, W) and sample numbers `number` (B,).
        view: The teacher's predictions for the batch.
        probability: Of each crop to receive pixels, 0 to 1. With 0 nothing is copied or added.
        seed: Of the run.
        align_corners: Where the network's grid cells lie, see cell_grid.py.

    Returns:
        The mixed batch and view. The batch gains `own_ids`, the highest mask id before mixing: pasted
        masks have ids above it, so they never join a mask of the crop itself.
    """
    if probability <= 0:
        return dict(batch), view
    pasted = _pasted_pixels(view.labels, batch["number"], probability, seed)
    neighbour = torch.arange(len(pasted), device=pasted.device) ^ 1
    neighbour = torch.where(neighbour < len(pasted), neighbour, neighbour ^ 1)
    height, width = view.probabilities.shape[-2:]
    pasted_cells = cell_means(pasted[:, None].float(), (height, width), align_corners) > 0.5

    def paste(values: Tensor, where: Tensor) -> Tensor:
        return torch.where(where, values[neighbour], values)

    def paste_channels(values: Tensor | None) -> Tensor | None:
        return None if values is None else paste(values, pasted[:, None])

    ids = batch["mask_ids"]
    own_ids = ids.max()
    pasted_ids = torch.where(ids > 0, ids + own_ids, ids)[neighbour]
    mixed = dict(batch) | {
        "own_ids": own_ids,
        "strong": paste(batch["strong"], pasted[:, None]),
        "mask_ids": torch.where(pasted, pasted_ids, ids),
    }
    return mixed, replace(
        view,
        probabilities=paste(view.probabilities, pasted_cells),
        embeddings=paste(view.embeddings, pasted_cells),
        labels=paste(view.labels, pasted),
        confidence=paste(view.confidence, pasted),
        plausible=paste_channels(view.plausible),
        pixel_probabilities=paste_channels(view.pixel_probabilities),
    )


def _pasted_pixels(labels: Tensor, numbers: Tensor, probability: float, seed: int) -> Tensor:
    """Return (B, H, W) bool: the pixels of each crop that its neighbour's pixels replace."""
    pasted = torch.zeros_like(labels, dtype=torch.bool)
    for b in range(len(labels) - len(labels) % 2):
        generator = torch.Generator().manual_seed(
            (seed * _STREAM + 1) * 1_000_003 + int(numbers[b])
        )
        if float(torch.rand((), generator=generator)) >= probability:
            continue
        classes = labels[b ^ 1].unique()
        order = torch.randperm(len(classes), generator=generator).to(classes.device)
        chosen = classes[order[: (len(classes) + 1) // 2]]
        pasted[b] = torch.isin(labels[b ^ 1], chosen)
    return pasted
