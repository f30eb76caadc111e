"""Drawing negatives: prototypes of classes that an anchor's mask cannot have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sfss_ray.method.mask_table import MaskTable
from sfss_ray.method.prototype_pool import PrototypePool


def allowed_negative_classes(table: MaskTable, unlabelled_top_k: int) -> np.ndarray:
    """Return (K, C) bool: whether prototypes of a class may be negatives of a mask.

    They may if the class is not among the mask's most probable ones. For a reliable mask that is its own
    class, so two instances of one class are never pushed apart. For other masks it is the
    `unlabelled_top_k` most probable classes, or all but the least probable one where there are fewer.
    """
    likely = table.probabilities
    # Stable: of equal probabilities the first ranks first, as in the argmax that is the mask's label.
    rank = (-likely).argsort(axis=1, kind="stable").argsort(axis=1)
    excluded = np.where(table.reliable, 1, max(1, min(unlabelled_top_k, likely.shape[1] - 1)))
    return rank >= excluded[:, None]


def allowed_ranges(pool: PrototypePool, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the allowed classes of each mask lie in the pool.

    Args:
        pool: Of R entries, sorted by class.
        allowed: (K, C) bool, from `allowed_negative_classes`.

    Returns:
        (K, 2, C) start and number of entries of each class, classes that are allowed and in the pool
        first. And (K, 1), how many of these there are.
    """
    usable = allowed & (pool.class_count > 0)
    order = (~usable).argsort(axis=1, kind="stable")
    ranges = np.stack([pool.class_start[order], pool.class_count[order]], 1)
    return ranges, usable.sum(1, keepdims=True)


def draw_negatives(
    ranges: Tensor,
    num_choices: Tensor,
    similarity: Tensor,
    num_negatives: int,
    generators: Sequence[tuple[torch.Generator, int]],
) -> Tensor:
    """Draw pool entries of allowed classes: half uniform over classes, half semi-hard.

    Semi-hard negatives are the most similar quarter of four times as many uniform draws. They are
    near, but not always the very nearest, whose true class is most often the anchor's own.

    Args:
        ranges: (A, 2, C) start and number of entries of each anchor's classes in the pool, allowed
            ones first. On the networks' device, like the next two.
        num_choices: (A, 1) number of allowed classes.
        similarity: (A, R) of the anchors to all entries.
        num_negatives: N, per anchor.
        generators: Each image's generator and its number of anchors, A in all. On a GPU the draws come
            from generators of the device with the same seeds.

    Returns:
        (A, N) indices into the pool, meaningless for anchors without an allowed class.
    """
    num_uniform = num_negatives - num_negatives // 2
    num_semi_hard = num_negatives // 2
    device = similarity.device
    draws = similarity.new_empty(2, len(num_choices), num_uniform + 4 * num_semi_hard)
    counts = [count for _, count in generators]
    for (generator, _), image_draws in zip(generators, draws.split(counts, dim=1), strict=True):
        device_generator = generator_on(device, generator)
        for rows in image_draws:
            torch.rand(rows.shape, generator=device_generator, out=rows)
    if not similarity.numel():
        return torch.zeros(len(num_choices), num_negatives, dtype=torch.long, device=device)

    # In place, because these are the largest tensors of the contrast.
    class_draw, entry_draw = draws
    slot = class_draw.mul_(num_choices).long()
    start, count = (column.gather(1, slot) for column in ranges.unbind(1))
    entries = start.add_(entry_draw.mul_(count).long()).clamp_(max=similarity.shape[1] - 1)
    candidates = entries[:, num_uniform:]
    nearest = similarity.gather(1, candidates).topk(num_semi_hard, dim=1, sorted=False).indices
    return torch.cat([entries[:, :num_uniform], candidates.gather(1, nearest)], 1)


def generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """Return the generator itself on its own device, else one of that device with its seed."""
    if device == generator.device:
        return generator
    return torch.Generator(device).manual_seed(generator.initial_seed())
