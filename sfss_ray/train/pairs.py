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

import torch
from torch import Tensor

from sfss_ray.config import PairConfig
from sfss_ray.train.devices import send
from sfss_ray.train.mask_table import MaskTable, Origins


@dataclass(frozen=True)
class PrototypePool:
    """Prototypes of reliable masks that can be contrasted with, sorted by (class, image).

    `keys` tell masks apart, as those of `Origins` do; -1 for entries of the memory bank.
    """

    vectors: Tensor  # (R, D), on the networks' device
    classes: Tensor  # (R,)
    images: Tensor  # (R,) image numbers
    keys: Tensor  # (R,)
    class_start: Tensor  # (C,)
    class_count: Tensor  # (C,)

    @staticmethod
    def build(
        vectors: Tensor, classes: Tensor, images: Tensor, keys: Tensor, num_classes: int
    ) -> PrototypePool:
        """Sort entries by class, then image, then key; ties keep the order given."""
        order = keys.argsort(stable=True)
        order = order[images[order].argsort(stable=True)]
        order = order[classes[order].argsort(stable=True)]
        count = torch.bincount(classes, minlength=num_classes)
        return PrototypePool(
            vectors[send(order, vectors.device)],
            classes[order],
            images[order],
            keys[order],
            count.cumsum(0) - count,
            count,
        )


@dataclass(frozen=True)
class Pairs:
    """What was drawn for A anchors of one image; all on the networks' device."""

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
    table: MaskTable,
    chosen: Tensor,
    pool: PrototypePool,
    origins: Origins,
    vectors: Tensor,
    config: PairConfig,
    generator: torch.Generator,
) -> Pairs:
    """Draw positives and negatives of one image's anchors.

    Args:
        chosen: (A,) the anchors' places in the table's cells, of draw_anchors.
        origins: images and keys of the table's masks, as in the pool.
        vectors: (A, D) the student's embeddings of the anchors, on the networks' device: their
            similarities to the pool, which say what negatives are semi-hard, are kept in the pairs with
            their gradient, so that they are computed once.
        generator: CPU generator of this image alone, so that world size changes nothing; the anchors
            were drawn from it too. On a GPU negatives come from the device's own generator with the
            same seed.
    """
    mask = table.owner[chosen]
    anchors = table.cells[chosen]
    instance = _draw_same_mask(table, chosen, mask, config.positives, generator)
    positives, valid = _draw_same_class(table, pool, mask, origins, config.positives, generator)
    allowed = allowed_negative_classes(table, config.unlabelled_top_k)[mask]
    device = vectors.device
    similarity = vectors @ pool.vectors.T
    negatives, negative_valid = _draw_negatives(
        pool, allowed, similarity.detach(), config.negatives, generator
    )
    weight = table.purity * table.confidence * table.reliable
    return Pairs(
        anchors=send(anchors, device),
        instance_positives=send(table.cells[instance], device),
        instance_prototype_sum=table.weighted_sum[send(mask, device)],
        own_weight=send(table.cell_confidence[chosen], device),
        class_positives=send(positives, device),
        class_valid=send(valid, device),
        class_weight=send(weight[mask], device),
        negatives=negatives,
        negative_valid=send(negative_valid, device).expand_as(negatives),
        similarity=similarity,
    )


def allowed_negative_classes(table: MaskTable, unlabelled_top_k: int) -> Tensor:
    """(K, C) bool: may masks of this class be negatives of mask k?

    Only if the class is not among the mask's likeliest: 1 for a reliable mask (never its own class,
    so two instances of one class are not pushed apart), `unlabelled_top_k` for the others.
    """
    classes = table.probabilities.shape[1]
    # Stable: of equal probabilities the first comes first, as in the argmax that is the mask's label.
    rank = table.probabilities.argsort(dim=1, descending=True, stable=True).argsort(1)
    reach = torch.where(table.reliable, 1, min(unlabelled_top_k, classes - 1))
    return rank >= reach[:, None]


def _uniform(
    shape: tuple[int, ...], generator: torch.Generator, device: torch.device | None = None
) -> Tensor:
    return torch.rand(shape, generator=generator, device=device)


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
) -> Tensor:
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
    usable = (table.count >= 2) & ~table.merged
    label = table.label[table.owner]
    unsure = table.cell_confidence < thresholds[label]
    hard = (student_label[table.cells] != label) | unsure
    rank, hard_count = _ranks_within(table, hard, noise)
    easy_count = table.count - hard_count
    half = config.anchors_per_mask // 2
    rest = config.anchors_per_mask - half
    hard_quota = torch.maximum(
        torch.full_like(hard_count, half), config.anchors_per_mask - easy_count
    )
    easy_quota = torch.maximum(
        torch.full_like(easy_count, rest), config.anchors_per_mask - hard_count
    )
    quota = torch.where(hard, hard_quota[table.owner], easy_quota[table.owner])
    eligible = usable[table.owner] & (rank < quota)
    of_class = torch.bincount(label, weights=usable[table.owner].double())[label].float()
    weight = 1 / torch.sqrt(table.count[table.owner].float() * of_class.clamp(min=1))
    # Sampling without replacement in proportion to weight: the smallest of -log(u) / weight.
    key = (-torch.log(luck.clamp(min=1e-9)) / weight).masked_fill(~eligible, torch.inf)
    number = min(int(eligible.sum()), config.anchors_per_image)
    return key.argsort(stable=True)[:number]


def _ranks_within(table: MaskTable, hard: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Random rank of each cell among those of its mask that are hard as it is; hard cells per mask."""
    # One sort by (mask, easy after hard, noise): in double, owner + noise keeps every bit of noise.
    order = (table.owner * 4.0 + (~hard) * 2.0 + noise.double()).argsort(stable=True)
    hard_count = torch.bincount(table.owner[hard], minlength=len(table))
    first = table.start[table.owner] + hard_count[table.owner] * ~hard
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return rank - first, hard_count


def _draw_same_mask(
    table: MaskTable, chosen: Tensor, mask: Tensor, number: int, generator: torch.Generator
) -> Tensor:
    """(A, P) positions in `table.cells` of other cells of the anchor's mask, with replacement."""
    start, count = table.start[mask, None], table.count[mask, None]
    draw = (_uniform((len(chosen), number), generator) * (count - 1)).long()
    own = chosen[:, None] - start
    return start + draw + (draw >= own)


def _draw_same_class(
    table: MaskTable,
    pool: PrototypePool,
    mask: Tensor,
    origins: Origins,
    number: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """(A, P) pool entries of other reliable masks of the anchor's class, and which are real.

    The first half comes from other images where there are any, the rest from anywhere. Entries of
    one class lie together, sorted by image and mask, so "all but my image" and "all but my mask" are
    a range with a gap that a drawn number skips.
    """
    draw = _uniform((len(mask), number), generator)
    if not len(pool.vectors):
        return draw.long(), torch.zeros_like(draw, dtype=torch.bool)
    label = table.label[mask]
    start, count = pool.class_start[label], pool.class_count[label]
    images, of_image = origins.images.unique(return_inverse=True)
    of_image = of_image[mask]
    own_image = _count_by_class(pool, pool.images == images[:, None])[of_image, label]
    before = _count_by_class(pool, pool.images < images[:, None])[of_image, label]
    mine = _own_entries(pool, origins.keys)[mask]  # position in the pool, -1: not there

    gap_from, gap = start + before, own_image
    others = count - gap
    far = start[:, None] + (draw * others[:, None]).long()
    far = far + gap[:, None] * (far >= gap_from[:, None])
    in_pool = ((mine >= start) & (mine < start + count)).long()
    near = start[:, None] + (draw * (count - in_pool)[:, None]).long()
    near = near + in_pool[:, None] * (near >= mine[:, None])

    slot = torch.arange(number, device=draw.device)
    use_far = (slot < (number + 1) // 2)[None] & (others > 0)[:, None]
    valid = table.reliable[mask, None] & torch.where(
        use_far, others[:, None], (count - in_pool)[:, None]
    ).gt(0)
    index = torch.where(use_far, far, near).clamp(max=len(pool.vectors) - 1)
    return index, valid


def _count_by_class(pool: PrototypePool, chosen: Tensor) -> Tensor:
    """(I, C) chosen entries of each class, of chosen (I, R)."""
    count = pool.class_count.new_zeros((len(chosen), len(pool.class_count)))
    return count.index_add_(1, pool.classes, chosen.long())


def _own_entries(pool: PrototypePool, keys: Tensor) -> Tensor:
    """(K,) where the mask of each key stands in the pool; -1 for those that do not."""
    ordered, position = pool.keys.sort()
    at = torch.searchsorted(ordered, keys).clamp(max=len(ordered) - 1)
    return torch.where(ordered[at] == keys, position[at], -1)


def _draw_negatives(
    pool: PrototypePool,
    allowed: Tensor,
    similarity: Tensor,
    number: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """(A, N) pool entries of allowed classes, where `similarity` is: half uniform over classes, half
    semi-hard; (A, 1) whether an anchor has any.

    Semi-hard = the most similar quarter of four times as many uniform draws: near, but not always the
    very nearest, which are the likeliest to be of the anchor's own class after all.
    """
    uniform_part = number - number // 2
    semi_hard = number // 2
    shape, device = (len(allowed), uniform_part + 4 * semi_hard), similarity.device
    numbers = _generator_on(device, generator)
    which_class, which_entry = (_uniform(shape, numbers, device) for _ in range(2))
    allowed = allowed & (pool.class_count > 0)
    choices = allowed.sum(1, keepdim=True)
    valid = choices > 0
    if not len(pool.vectors) or not len(allowed):
        empty = torch.zeros(len(allowed), number, dtype=torch.long, device=device)
        return empty, torch.zeros_like(valid)
    class_order = (~allowed).long().argsort(dim=1, stable=True)  # allowed classes first
    start, count = (
        send(each[class_order], device) for each in (pool.class_start, pool.class_count)
    )
    slot = which_class.mul_(send(choices, device)).long()
    start, count = start.gather(1, slot), count.gather(1, slot)
    index = start.add_(which_entry.mul_(count).long()).clamp_(max=len(pool.vectors) - 1)
    candidates = index[:, uniform_part:]
    nearest = similarity.gather(1, candidates).topk(semi_hard, dim=1, sorted=False).indices
    drawn = torch.cat([index[:, :uniform_part], candidates.gather(1, nearest)], 1)
    return drawn, valid
