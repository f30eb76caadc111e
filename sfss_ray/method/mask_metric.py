"""A metric of masks that is learned without class labels: two views of one mask belong together.

The embedding that results is the space in which masks look for neighbours (mask_neighbours.py). It
learns from the masks and not from the teacher's labels, so it does not repeat the teacher's mistakes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sfss_ray.method.collective import global_mean
from sfss_ray.method.losses import pair_loss
from sfss_ray.method.mask_evidence import MaskPixels
from sfss_ray.method.mask_neighbours import MaskNeighbours
from sfss_ray.method.mask_space import MaskSpace, pool_cells

MOST_OVERLAP = 0.5
"""Masks whose class opinions share less than this are negatives of each other."""
_BLOCKS = 8
_PART = 0.5
"""Share of the cells that the student's part of a mask is drawn from."""
_STREAM = 15_485_863  # keeps these draws apart from others of the same sample


@dataclass(frozen=True)
class MetricTargets:
    """What the student's embeddings are compared with: the teacher's of the K masks of a batch."""

    embeddings: Tensor
    """(K, D) of length 1."""
    geometry: Tensor
    """(K, GEOMETRY_WIDTH) of each mask in its whole image."""
    opinions: Tensor
    """(K, C) class probabilities by each mask's neighbours."""
    images: Tensor
    """(K,) number of each mask's image in the data set."""
    rows: Tensor
    """(K,) row of the batch that each mask lies in."""
    ids: Tensor
    """(K,) id of each mask in its row, before class-mix."""


@dataclass(frozen=True)
class MetricOptions:
    """Settings of `metric_loss`."""

    temperature: float
    """T, above 0."""
    seed: int
    """Of the run. With the sample numbers it decides which part of a mask the student sees."""


def metric_loss(
    features: Tensor,
    batch: Mapping[str, Tensor],
    targets: MetricTargets,
    space: MaskSpace,
    neighbours: MaskNeighbours,
    options: MetricOptions,
) -> Tensor:
    """Pull a part of each mask to the teacher's whole mask, away from masks of other opinions.

        l_k = softplus( logsumexp over masks j of e_k . t_j / T  -  e_k . t_k / T )

    with e_k the student's embedding of a part of mask k in the strong view, t_k the teacher's of the
    whole mask in the weak view, and j the masks of the ring from other images with
    sum_c min(r_k(c), p_j(c)) < MOST_OVERLAP. r_k is the opinion of k's neighbours and p_j the evidence
    of j. Pseudo-labels do not occur: permuting the classes changes nothing.

    Args:
        features: (B, W, h, w), what `space` made of the student's features, with gradient.
        batch: `mask_ids` (B, H, W), after class-mix, and `number` (B,).
        targets: The teacher's, of the batch before class-mix. Masks that class-mix has covered do not
            count.
        space: The student's.
        neighbours: The ring, with embeddings of the teacher.
        options: Temperature and seed.

    Returns:
        () mean over the masks of all workers, as `global_mean` defines it. Masks without a negative do
        not count.
    """
    masks = MaskPixels(batch["mask_ids"])
    numbers = targets.rows * masks.ids_per_image + targets.ids
    in_range = targets.ids < masks.ids_per_image
    visible = in_range & torch.isin(numbers, masks.present())
    numbers = numbers[visible]
    chosen = _draw_cells(batch["number"], features.shape[-2:], options.seed).to(features.device)
    pooled = pool_cells(features, batch["mask_ids"], masks, chosen)[numbers]
    embeddings = space.embed(pooled, targets.geometry[visible])
    positive = (embeddings * targets.embeddings[visible]).sum(1, keepdim=True)
    ring, probabilities, images = neighbours.entries()
    overlap = _overlap(targets.opinions[visible], probabilities)
    negative = (overlap < MOST_OVERLAP) & (targets.images[visible][:, None] != images)
    loss = pair_loss(positive, embeddings @ ring[0].T, options.temperature, None, negative)
    counted = negative.any(1)
    return global_mean((loss * counted).sum(), counted.float().sum())


def _overlap(first: Tensor, second: Tensor) -> Tensor:
    """Return sum_c min(first, second): (K, C), (L, C) -> (K, L) in [0, 1]."""
    # One class at a time: (K, L, C) would be large.
    pairs = zip(first.T, second.T, strict=True)
    return sum((torch.minimum(a[:, None], b[None]) for a, b in pairs), first.new_zeros(()))


def _draw_cells(numbers: Tensor, grid: tuple[int, ...], seed: int) -> Tensor:
    """Return (B, h * w) bool: the cells of each sample that the student's parts are made of.

    The grid is cut into _BLOCKS by _BLOCKS blocks, which are drawn whole, so that parts are connected.
    """
    height, width = grid
    chosen = []
    for number in numbers.tolist():
        stream = (seed * _STREAM + 1) * 1_000_003 + int(number)
        generator = torch.Generator().manual_seed(stream % 2**63)
        coarse = torch.rand(_BLOCKS, _BLOCKS, generator=generator) < _PART
        rows = torch.arange(height) * _BLOCKS // height
        columns = torch.arange(width) * _BLOCKS // width
        chosen.append(coarse[rows[:, None], columns].flatten())
    return torch.stack(chosen)
