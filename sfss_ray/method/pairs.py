"""Masks and the teacher's opinion -> anchors, positives and negatives.

Read mask_table.py first: what the teacher says of each mask. Then from top to bottom: `PrototypePool`
collects what can be contrasted with, `draw_anchors` and `sample_pairs` draw.
The indices drawn here have no gradient; the similarities of anchors to the pool do.

Vectors live where the networks are; ids, classes, counts and most draws live on the CPU. A GPU would
run a thousand tiny kernels for them and be waited for at every count, while sizes known here let its
work be queued without a stop. The hundreds of negatives of each anchor are drawn where the vectors are:
their shape is known beforehand, and they are too many for one CPU thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfss_ray.config import PairConfig
from sfss_ray.method.mask_table import MaskTable, Origins
from sfss_ray.method.sorting import stable_order
from sfss_ray.method.transfer import send_arrays


@dataclass(frozen=True)
class PrototypePool:
    """Prototypes of reliable masks that can be contrasted with, sorted by (class, image).

    `keys` tell masks apart, as those of `Origins` do; -1 for entries of the memory bank.
    """

    vectors: Tensor  # (R, D), on the networks' device
    classes: np.ndarray  # (R,)
    images: np.ndarray  # (R,) image numbers
    keys: np.ndarray  # (R,)
    places: np.ndarray  # (R,) of `place_of`, rising
    class_start: np.ndarray  # (C,)
    class_count: np.ndarray  # (C,)

    @staticmethod
    def build(
        vectors: Tensor,
        classes: np.ndarray,
        images: np.ndarray,
        keys: np.ndarray,
        num_classes: int,
    ) -> PrototypePool:
        """Sort entries by class, then image, then key; ties keep the order given."""
        places = place_of(classes, images)
        order = stable_order(keys + 1)
        order = order[stable_order(places[order])]
        count = np.bincount(classes, minlength=num_classes)
        (there,) = send_arrays([order], vectors.device)
        return PrototypePool(
            vectors.index_select(0, there),
            classes[order],
            images[order],
            keys[order],
            places[order],
            count.cumsum() - count,
            count,
        )


def place_of(classes: np.ndarray, images: np.ndarray) -> np.ndarray:
    """One number of both that rises with the class, then the image."""
    return (classes << 32) + images


@dataclass(frozen=True)
class Pairs:
    """What was drawn for the A anchors of B images; all on the networks' device. Grid indices of image b
    begin at b * h * w.
    """

    anchors: Tensor  # (A,) grid index of the student's cell
    instance_positives: Tensor  # (A, P) grid index of the teacher's cells
    instance_prototype_sum: (
        Tensor  # (A, D) confidence-weighted sum over the mask, own cell included
    )
    own_weight: Tensor  # (A,) the own cell's weight in that sum
    class_positives: Tensor  # (A, P) index into the pool
    class_valid: Tensor  # (A, P) bool
    class_weight: Tensor  # (A,) purity * confidence of the anchor's mask, 0 if unreliable
    negatives: Tensor  # (A, N) index into the pool
    negative_valid: Tensor  # (A, N) bool
    similarity: Tensor  # (A, R) anchors to the pool, with gradient: drawn from, reused


def sample_pairs(
    tables: list[MaskTable],
    chosen: list[np.ndarray],
    pool: PrototypePool,
    origins: list[Origins],
    vectors: Tensor,
    area: int,
    config: PairConfig,
    generators: list[torch.Generator],
) -> Pairs:
    """Draw positives and negatives of the anchors of B images.

    Args:
        chosen: of each image the anchors' places in the table's cells, of draw_anchors; A in all.
        origins: images and keys of the tables' masks, as in the pool.
        vectors: (A, D) the student's embeddings of the anchors, on the networks' device: their
            similarities to the pool, which say what negatives are semi-hard, are kept in the pairs with
            their gradient, so that they are computed once.
        area: cells of an image's grid, h * w.
        generators: a CPU generator of each image alone, so that world size changes nothing; the anchors
            were drawn from it too. On a GPU negatives come from the device's own generator with the
            same seed.
    """
    drawn, mask_before = [], 0
    for b, table in enumerate(tables):
        own = _draw_on_cpu(table, chosen[b], pool, origins[b], config, generators[b])
        own["anchors"] += b * area
        own["instance_positives"] += b * area
        own["mask"] += mask_before
        mask_before += len(table)
        drawn.append(own)
    together = {name: np.concatenate([own[name] for own in drawn]) for name in drawn[0]}
    sent = dict(zip(together, send_arrays(list(together.values()), vectors.device), strict=True))
    choices, mask = sent.pop("choices"), sent.pop("mask")
    similarity = vectors @ pool.vectors.T
    negatives = _draw_negatives(
        sent.pop("ranges"),
        choices,
        similarity.detach(),
        config.negatives,
        [len(own["mask"]) for own in drawn],
        generators,
    )
    sums = torch.cat([table.weighted_sum for table in tables])
    return Pairs(
        **sent,
        instance_prototype_sum=sums.index_select(0, mask),
        negatives=negatives,
        negative_valid=(choices > 0).expand_as(negatives),
        similarity=similarity,
    )


def _draw_on_cpu(
    table: MaskTable,
    chosen: np.ndarray,
    pool: PrototypePool,
    origins: Origins,
    config: PairConfig,
    generator: torch.Generator,
) -> dict[str, np.ndarray]:
    """Of one image's anchors all but the negatives, and what these are drawn from; by field of Pairs."""
    mask = table.owner[chosen]
    instance = _draw_same_mask(table, chosen, mask, config.positives, generator)
    positives, valid = _draw_same_class(table, pool, mask, origins, config.positives, generator)
    allowed = allowed_negative_classes(table, config.unlabelled_top_k)
    ranges, choices = _ranges_of_allowed(pool, allowed)
    weight = table.purity * table.confidence * table.reliable
    return {
        "anchors": table.cells[chosen],
        "instance_positives": table.cells[instance],
        "own_weight": table.cell_confidence[chosen],
        "class_positives": positives,
        "class_valid": valid,
        "class_weight": weight[mask],
        "mask": mask,
        "ranges": ranges[mask],
        "choices": choices[mask],
    }


def allowed_negative_classes(table: MaskTable, unlabelled_top_k: int) -> np.ndarray:
    """(K, C) bool: may masks of this class be negatives of mask k?

    Only if the class is not among the mask's likeliest: 1 for a reliable mask (never its own class,
    so two instances of one class are not pushed apart), `unlabelled_top_k` for the others.
    """
    likely = table.probabilities
    # Stable: of equal probabilities the first comes first, as in the argmax that is the mask's label.
    rank = (-likely).argsort(axis=1, kind="stable").argsort(axis=1)
    reach = np.where(table.reliable, 1, min(unlabelled_top_k, likely.shape[1] - 1))
    return rank >= reach[:, None]


def _ranges_of_allowed(pool: PrototypePool, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a mask's allowed classes start in the pool and how many entries each has, (K, 2, C), those
    that are allowed and there first; and how many these are, (K, 1).
    """
    there = allowed & (pool.class_count > 0)
    order = (~there).argsort(axis=1, kind="stable")
    ranges = np.stack([pool.class_start[order], pool.class_count[order]], 1)
    return ranges, there.sum(1, keepdims=True)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> np.ndarray:
    return torch.rand(shape, generator=generator).numpy()


def _generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """The generator itself, or one of the other device with its seed."""
    if device == generator.device:
        return generator
    return torch.Generator(device).manual_seed(generator.initial_seed())


def draw_anchors(
    table: MaskTable,
    student_label: Tensor,
    thresholds: Tensor,
    config: PairConfig,
    generator: torch.Generator,
) -> np.ndarray:
    """(A,) positions in `table.cells`: at most `anchors_per_mask` of a mask, half of them hard, and
    `anchors_per_image` in all, a cell's weight 1 / sqrt(cells of its mask * cells of its class).

    Args:
        student_label: (h * w,) the student's argmax, on the CPU: where it disagrees, an anchor is hard.
        thresholds: (C,) below them the teacher is unsure, and an anchor hard too.
        generator: CPU generator of this image alone.
    """
    # Two draws: cells that win a place within their mask must not be favoured or held back by the
    # same number when masks compete for the image's anchors.
    noise, luck = (_uniform((len(table.cells),), generator) for _ in range(2))
    owner, count = table.owner, table.count
    usable = (count >= 2) & ~table.merged
    cell_class = table.label[owner]
    unsure = table.cell_confidence < thresholds.numpy()[cell_class]
    hard = (student_label.numpy()[table.cells] != cell_class) | unsure
    hard_count = np.bincount(owner, weights=hard, minlength=len(count)).astype(np.int64)
    easy_count = count - hard_count
    most = config.anchors_per_mask
    hard_quota = np.maximum(most // 2, most - easy_count)
    easy_quota = np.maximum(most - most // 2, most - hard_count)
    kind = owner * 2 + ~hard  # hard cells before easy ones
    quota = (np.stack([hard_quota, easy_quota], 1) * usable[:, None]).ravel()
    first = np.stack([table.start, table.start + hard_count], 1).ravel()
    rank = _ranks_of(kind, noise) - first[kind]

    eligible = np.flatnonzero(rank < quota[kind])
    cells_of_class = np.bincount(table.label, weights=count * usable)
    mask = owner[eligible]
    both = count[mask].astype(np.float32) * cells_of_class[table.label[mask]].astype(np.float32)
    # Sampling without replacement in proportion to weight: the smallest of -log(u) / weight.
    key = -np.log(luck[eligible].clip(min=1e-9)) * np.sqrt(both)
    return eligible[key.argsort(kind="stable")[: config.anchors_per_image]]


def _ranks_of(kind: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """(M,) place of each cell in the order of (kind, noise), of which a float in [0, 1) has 24 bits."""
    order = stable_order((kind << 24) + (noise * (1 << 24)).astype(np.int64))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank


def _draw_same_mask(
    table: MaskTable, chosen: np.ndarray, mask: np.ndarray, number: int, generator: torch.Generator
) -> np.ndarray:
    """(A, P) positions in `table.cells` of other cells of the anchor's mask, with replacement."""
    start, count = table.start[mask][:, None], table.count[mask][:, None]
    draw = _below(count - 1, _uniform((len(chosen), number), generator))
    return start + draw + (draw >= chosen[:, None] - start)


def _below(count: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Whole numbers in [0, count) of uniform draws from [0, 1)."""
    return (draw * count.astype(np.float32)).astype(np.int64)


def _draw_same_class(
    table: MaskTable,
    pool: PrototypePool,
    mask: np.ndarray,
    origins: Origins,
    number: int,
    generator: torch.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """(A, P) pool entries of other reliable masks of the anchor's class, and which are real.

    The first half comes from other images where there are any, the rest from anywhere. Entries of
    one class lie together, sorted by image and mask, so "all but my image" and "all but my mask" are
    a range with a gap that a drawn number skips.
    """
    draw = _uniform((len(mask), number), generator)
    if not len(pool.classes):
        return np.zeros(draw.shape, np.int64), np.zeros(draw.shape, bool)
    label = table.label[mask]
    start, count = pool.class_start[label], pool.class_count[label]
    # My image's entries of this class are a range of the sorted pool.
    place = place_of(label, origins.images[mask])
    gap_from = np.searchsorted(pool.places, place)
    gap = np.searchsorted(pool.places, place, side="right") - gap_from
    mine = _own_entries(pool, origins.keys)[mask]  # position in the pool, -1: not there
    in_pool = ((mine >= start) & (mine < start + count)).astype(np.int64)

    others, rest = (count - gap)[:, None], (count - in_pool)[:, None]
    far = start[:, None] + _below(others, draw)
    far += gap[:, None] * (far >= gap_from[:, None])
    near = start[:, None] + _below(rest, draw)
    near += in_pool[:, None] * (near >= mine[:, None])

    use_far = (np.arange(number) < (number + 1) // 2)[None] & (others > 0)
    valid = table.reliable[mask][:, None] & (np.where(use_far, others, rest) > 0)
    return np.where(use_far, far, near).clip(max=len(pool.classes) - 1), valid


def _own_entries(pool: PrototypePool, keys: np.ndarray) -> np.ndarray:
    """(K,) where the mask of each key stands in the pool; -1 for those that do not."""
    fresh = np.flatnonzero(pool.keys >= 0)
    if not len(fresh):
        return np.full_like(keys, -1)
    fresh = fresh[pool.keys[fresh].argsort()]
    ordered = pool.keys[fresh]
    at = np.searchsorted(ordered, keys).clip(max=len(ordered) - 1)
    return np.where(ordered[at] == keys, fresh[at], -1)


def _draw_negatives(
    ranges: Tensor,
    choices: Tensor,
    similarity: Tensor,
    number: int,
    anchors: list[int],
    generators: list[torch.Generator],
) -> Tensor:
    """(A, N) pool entries of allowed classes: half uniform over classes, half semi-hard.

    Semi-hard = the most similar quarter of four times as many uniform draws: near, but not always the
    very nearest, which are the likeliest to be of the anchor's own class after all.

    Args:
        ranges: (A, 2, C) where an anchor's classes start in the pool and how many entries each has,
            allowed ones first; on the networks' device, as the next two.
        choices: (A, 1) how many are allowed.
        similarity: (A, R) to all entries.
        anchors: of each image how many of the A are its own.
        generators: of each image.
    """
    uniform_part = number - number // 2
    semi_hard = number // 2
    device = similarity.device
    draws = similarity.new_empty(2, len(choices), uniform_part + 4 * semi_hard)
    for b, own in enumerate(draws.split(anchors, dim=1)):
        numbers = _generator_on(device, generators[b])
        for which in own:
            torch.rand(which.shape, generator=numbers, out=which)
    if not similarity.numel():
        return torch.zeros(len(choices), number, dtype=torch.long, device=device)
    which_class, which_entry = draws
    slot = which_class.mul_(choices).long()
    start, count = (each.gather(1, slot) for each in ranges.unbind(1))
    index = start.add_(which_entry.mul_(count).long()).clamp_(max=similarity.shape[1] - 1)
    candidates = index[:, uniform_part:]
    nearest = similarity.gather(1, candidates).topk(semi_hard, dim=1, sorted=False).indices
    return torch.cat([index[:, :uniform_part], candidates.gather(1, nearest)], 1)
