"""Drawing the pairs of a step: positives of each anchor here, negatives in negatives.py.

Read mask_table.py first, then anchors.py. The indices drawn here have no gradient, but the similarities
of anchors to the pool do.

Vectors live where the networks are. Ids, classes, counts and most draws live on the CPU: a GPU would run
a thousand tiny kernels for them and stop at every count, while sizes known on the CPU let its work be
queued without a stop. The hundreds of negatives of each anchor are drawn where the vectors are, because
their shape is known beforehand and they are too many for one CPU thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfss_ray.config import PairConfig
from sfss_ray.method.anchors import ImageAnchors, uniform
from sfss_ray.method.negatives import allowed_negative_classes, allowed_ranges, draw_negatives
from sfss_ray.method.prototype_pool import PrototypePool, sort_key
from sfss_ray.method.transfer import send_arrays


@dataclass(frozen=True)
class Pairs:
    """The pairs of the A anchors of B images, on the networks' device.

    Grid indices of image b begin at b * h * w.
    """

    anchors: Tensor  # (A,) grid index of the student's cell
    instance_positives: Tensor  # (A, P) grid index of the teacher's cells
    instance_prototype_sum: (
        Tensor  # (A, D) confidence-weighted sum over the mask, own cell included
    )
    own_weight: Tensor  # (A,) weight of the own cell in that sum
    class_positives: Tensor  # (A, P) index into the pool
    class_valid: Tensor  # (A, P) bool
    class_weight: Tensor  # (A,) purity * confidence of the anchor's mask, 0 if unreliable
    negatives: Tensor  # (A, N) index into the pool
    negative_valid: Tensor  # (A, N) bool
    similarity: Tensor  # (A, R) of anchors to the pool, with gradient


def sample_pairs(
    images: Sequence[ImageAnchors],
    pool: PrototypePool,
    vectors: Tensor,
    grid_cells: int,
    config: PairConfig,
) -> Pairs:
    """Draw positives and negatives of the anchors of B images.

    Args:
        images: Masks, anchors and generator of each image.
        pool: Prototypes of this step and of the bank.
        vectors: (A, D) the student's embeddings of the anchors, on the networks' device. Their
            similarities to the pool decide which negatives are semi-hard, and are kept with their
            gradient so that they are computed once.
        grid_cells: Cells of an image's grid, h * w.
        config: Of the pairs.
    """
    columns: list[dict[str, np.ndarray]] = []
    masks_before = 0
    for b, image in enumerate(images):
        drawn = _draw_on_cpu(image, pool, config)
        drawn["anchors"] += b * grid_cells
        drawn["instance_positives"] += b * grid_cells
        drawn["mask"] += masks_before
        masks_before += len(image.table)
        columns.append(drawn)

    # One copy to the device for all images and fields.
    joined = {name: np.concatenate([drawn[name] for drawn in columns]) for name in columns[0]}
    on_device = send_arrays(list(joined.values()), vectors.device)
    fields = dict(zip(joined, on_device, strict=True))
    num_choices, mask = fields.pop("num_choices"), fields.pop("mask")
    similarity = vectors @ pool.vectors.T
    negatives = draw_negatives(
        fields.pop("ranges"),
        num_choices,
        similarity.detach(),
        config.negatives,
        [(image.generator, len(image.anchors)) for image in images],
    )
    weighted_sums = torch.cat([image.table.weighted_sum for image in images])
    return Pairs(
        **fields,
        instance_prototype_sum=weighted_sums.index_select(0, mask),
        negatives=negatives,
        negative_valid=(num_choices > 0).expand_as(negatives),
        similarity=similarity,
    )


def _draw_on_cpu(
    image: ImageAnchors, pool: PrototypePool, config: PairConfig
) -> dict[str, np.ndarray]:
    """Return an image's fields of `Pairs`, and the ranges that its negatives are drawn from."""
    table = image.table
    mask = table.owner[image.anchors]
    cells = _draw_same_mask(image, mask, config.positives)
    positives, valid = _draw_same_class(image, pool, mask, config.positives)
    allowed = allowed_negative_classes(table, config.unlabelled_top_k)
    ranges, num_choices = allowed_ranges(pool, allowed)
    weight = table.purity * table.confidence * table.reliable
    return {
        "anchors": image.cells,
        "instance_positives": table.cells[cells],
        "own_weight": table.cell_confidence[image.anchors],
        "class_positives": positives,
        "class_valid": valid,
        "class_weight": weight[mask],
        "mask": mask,
        "ranges": ranges[mask],
        "num_choices": num_choices[mask],
    }


def _draw_same_mask(image: ImageAnchors, mask: np.ndarray, num_positives: int) -> np.ndarray:
    """Draw other cells of each anchor's mask, with replacement: (A, P) positions in `table.cells`."""
    table, anchors = image.table, image.anchors
    start, count = table.start[mask][:, None], table.count[mask][:, None]
    draw = _integers_below(count - 1, uniform((len(anchors), num_positives), image.generator))
    return start + draw + (draw >= anchors[:, None] - start)


def _integers_below(count: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Turn uniform draws from [0, 1) into integers in [0, count)."""
    return (draw * count.astype(np.float32)).astype(np.int64)


def _draw_same_class(
    image: ImageAnchors, pool: PrototypePool, mask: np.ndarray, num_positives: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw other reliable masks of each anchor's class.

    The first half comes from other images where the pool has any, the rest from anywhere. Entries of one
    class lie together, sorted by image, so "all but this image" and "all but this mask" are ranges with
    a gap that a drawn number skips.

    Returns:
        (A, P) indices into the pool, and (A, P) bool, which of them are real.
    """
    table = image.table
    draw = uniform((len(mask), num_positives), image.generator)
    if not len(pool.classes):
        return np.zeros(draw.shape, np.int64), np.zeros(draw.shape, bool)
    label = table.label[mask]
    start, count = pool.class_start[label], pool.class_count[label]
    # The image's own entries of this class are a range of the sorted pool.
    key = sort_key(label, image.origins.images[mask])
    gap_start = np.searchsorted(pool.sort_keys, key)
    gap = np.searchsorted(pool.sort_keys, key, side="right") - gap_start
    own_entry = pool.positions_of(image.origins.keys)[mask]  # -1: not in the pool
    in_range = ((own_entry >= start) & (own_entry < start + count)).astype(np.int64)

    other_images, other_masks = (count - gap)[:, None], (count - in_range)[:, None]
    far = start[:, None] + _integers_below(other_images, draw)
    far += gap[:, None] * (far >= gap_start[:, None])
    near = start[:, None] + _integers_below(other_masks, draw)
    near += in_range[:, None] * (near >= own_entry[:, None])

    first_half = (np.arange(num_positives) < (num_positives + 1) // 2)[None]
    use_far = first_half & (other_images > 0)
    candidates = np.where(use_far, other_images, other_masks)
    valid = table.reliable[mask][:, None] & (candidates > 0)
    return np.where(use_far, far, near).clip(max=len(pool.classes) - 1), valid
