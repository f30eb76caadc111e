"""One step of adaptation: the teacher looks, the student learns, the losses add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.config import TrainConfig
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.train.bank import PrototypeBank
from sfss_ray.train.collective import gather_rows, sum_over_workers, world_size
from sfss_ray.train.losses import pair_loss, segmentation_loss
from sfss_ray.train.pairs import (
    MaskTable,
    Pairs,
    PrototypePool,
    cell_mask_ids,
    describe_masks,
    sample_pairs,
)
from sfss_ray.train.pseudo_labels import ClassThresholds, pixel_weights

KEYS_PER_SAMPLE = 1 << 20  # a mask's key in the pool is sample number * this + its index


class ContrastNet(nn.Module):
    """A segmenter that also returns embeddings of its grid cells.

    With projection `none` the embeddings are the features that the classifier reads, so that what
    the contrast shapes is what decides the classes; with `mlp` a new head stands in between.
    """

    def __init__(self, segmenter: Segmenter, config: TrainConfig):
        super().__init__()
        projection, embedding_dim = config.loss.projection, config.loss.embedding_dim
        self.autocast_to_bf16 = config.precision == "bf16"
        self.segmenter = segmenter
        width = segmenter.feature_width
        self.embedding_dim = embedding_dim if projection == "mlp" else width
        self.projection: nn.Module = nn.Identity()
        if projection == "mlp":
            self.projection = nn.Sequential(
                nn.Conv2d(width, embedding_dim, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(embedding_dim, embedding_dim, 1),
            )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) -> logits (B, C, h, w), embeddings (B, D, h, w) of length 1."""
        # Autocast covers the networks alone: losses and similarities stay in float32.
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast_to_bf16):
            features, logits = self.segmenter(images)
            embeddings = self.projection(features)
        return logits.float(), F.normalize(embeddings.float(), dim=1)


@dataclass
class Memory:
    """What a run remembers besides weights: thresholds and the prototype bank."""

    thresholds: ClassThresholds
    bank: PrototypeBank


@dataclass(frozen=True)
class Look:
    """The teacher's view of a batch."""

    probabilities: Tensor  # (B, C, h, w) on the grid
    embeddings: Tensor  # (B, D, h, w)
    labels: Tensor  # (B, H, W) pseudo-labels
    confidence: Tensor  # (B, H, W)


@torch.no_grad()
def teacher_look(teacher: nn.Module, segmenter: Segmenter, weak: Tensor) -> Look:
    """Pseudo-labels at full size, probabilities and embeddings on the grid."""
    logits, embeddings = teacher(weak)
    full = segmenter.upsample(logits, weak.shape[-2:]).softmax(1)
    confidence, labels = full.max(1)
    return Look(logits.float().softmax(1), embeddings, labels, confidence)


def ramp(step: int, num_steps: int, between: tuple[float, float]) -> float:
    """0 before the first share of the run, 1 after the second, linear between."""
    start, end = (share * num_steps for share in between)
    if step >= end:
        return 1.0
    return (step - start) / (end - start) if step > start else 0.0


def adaptation_losses(
    student: nn.Module,
    teacher: nn.Module,
    segmenter: Segmenter,
    memory: Memory,
    batch: Mapping[str, Tensor],
    config: TrainConfig,
    step: int,
    seed: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss to call backward on, and its parts for the log; updates thresholds and bank.

    The loss is scaled so that the average of gradients over W workers is the gradient of the loss of
    the whole batch: each part is W * (this worker's sum) / (sum of weights over all workers).
    """
    look = teacher_look(teacher, segmenter, batch["weak"])
    memory.thresholds.update(
        sum_over_workers(memory.thresholds.count(look.labels, look.confidence))
    )
    thresholds = memory.thresholds.thresholds(
        config.loss.class_quantile, config.loss.confidence_cap
    )
    logits, embeddings = student(batch["strong"])
    weights = pixel_weights(look.labels, look.confidence, thresholds, config.loss)
    full = segmenter.upsample(logits, batch["strong"].shape[-2:])
    # paper_like weights scale the loss; class_adaptive ones choose pixels, over which it is a mean.
    chosen = weights if config.loss.thresholds == "class_adaptive" else torch.ones_like(weights)
    seg = _global_mean(segmentation_loss(full, look.labels, weights), chosen.sum())
    parts = {"loss_seg": seg, "kept": (weights > 0).float().mean()}
    loss = seg + 0.0 * embeddings.sum()  # every parameter has a gradient on every worker
    if config.loss.contrast_weight > 0:
        share = ramp(step, config.num_steps, config.loss.ramp)
        contrast = _contrast(
            embeddings, logits, look, thresholds, memory, batch, config, seed, share
        )
        parts |= contrast
        beta = config.loss.instance_share
        both = beta * contrast["loss_ins"] + (1 - beta) * contrast["loss_cls"]
        loss = loss + config.loss.contrast_weight * share * both
    parts["loss"] = loss
    return loss, {name: value.detach() for name, value in parts.items()}


def _global_mean(total: Tensor, weight: Tensor) -> Tensor:
    everywhere = sum_over_workers(weight.detach()).clamp(min=1e-6)
    return total * world_size() / everywhere


def _contrast(
    embeddings: Tensor,
    logits: Tensor,
    look: Look,
    thresholds: Tensor,
    memory: Memory,
    batch: Mapping[str, Tensor],
    config: TrainConfig,
    seed: int,
    share: float,
) -> dict[str, Tensor]:
    """Intra-instance and intra-class losses (means over all workers' anchors), pair statistics."""
    height, width = embeddings.shape[-2:]
    cells = cell_mask_ids(batch["mask_ids"], (height, width), config.pairs.cell_share)
    tables = [
        describe_masks(
            cells[b], look.probabilities[b], look.embeddings[b], thresholds, config.pairs
        )
        for b in range(len(cells))
    ]
    fresh = _gather_prototypes(tables, batch)
    sums = embeddings.new_zeros(4)
    if share > 0:
        pool = _pool(fresh, memory.bank, look.probabilities.shape[1])
        student_label = logits.argmax(1).flatten(1)
        for b, table in enumerate(tables):
            z = embeddings[b].flatten(1).T
            number, image = int(batch["number"][b]), int(batch["image"][b])
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            pairs = sample_pairs(
                table,
                pool,
                image,
                number * KEYS_PER_SAMPLE,
                student_label[b],
                thresholds,
                z.detach(),
                config.pairs,
                generator,
            )
            teacher_cells = look.embeddings[b].flatten(1).T
            sums = sums + image_contrast(z, teacher_cells, pool, pairs, config.loss.temperature)
    _remember(memory.bank, fresh, config.pairs.bank_per_image)
    masks = sum(len(t) for t in tables)
    reliable = sum(int(t.reliable.sum()) for t in tables)
    return {
        "loss_ins": _global_mean(sums[0], sums[1]),
        "loss_cls": _global_mean(sums[2], sums[3]),
        "masks": embeddings.new_tensor(masks / len(tables)),
        "reliable": embeddings.new_tensor(reliable / max(masks, 1)),
        "anchors": sums[1].detach(),
    }


def image_contrast(
    z: Tensor, teacher_cells: Tensor, pool: PrototypePool, pairs: Pairs, temperature: float
) -> Tensor:
    """(4,): sum of intra-instance losses, their number, weighted sum of intra-class losses, weight.

    Args:
        z: (h * w, D) the student's embeddings.
        teacher_cells: (h * w, D) the teacher's.
    """
    if not len(pairs.anchors) or not len(pool.vectors):
        return torch.stack([0.0 * z.sum(), z.new_zeros(()), 0.0 * z.sum(), z.new_zeros(())])
    anchors = z[pairs.anchors]
    to_pool = anchors @ pool.vectors.T
    negative = to_pool.gather(1, pairs.negatives)
    others = torch.einsum("ad,apd->ap", anchors, teacher_cells[pairs.instance_positives])
    own = pairs.own_weight[:, None] * teacher_cells[pairs.anchors]
    prototype = F.normalize(pairs.instance_prototype_sum - own, dim=1)
    instance = torch.cat([others, (anchors * prototype).sum(1, keepdim=True)], 1)
    ins = pair_loss(instance, negative, temperature, None, pairs.negative_valid)
    ins_count = pairs.negative_valid.any(1).float()
    cls = pair_loss(
        to_pool.gather(1, pairs.class_positives),
        negative,
        temperature,
        pairs.class_valid,
        pairs.negative_valid,
    )
    cls_weight = pairs.class_weight * pairs.class_valid.any(1) * pairs.negative_valid.any(1)
    return torch.stack([ins.sum(), ins_count.sum(), (cls_weight * cls).sum(), cls_weight.sum()])


@dataclass(frozen=True)
class _Prototypes:
    """Reliable masks of this step, of all workers, in the order of (rank, image, mask)."""

    vectors: Tensor
    classes: Tensor
    images: Tensor
    keys: Tensor
    scores: Tensor


def _gather_prototypes(tables: list[MaskTable], batch: Mapping[str, Tensor]) -> _Prototypes:
    vectors, facts, scores = [], [], []
    for table, image, number in zip(tables, batch["image"], batch["number"], strict=True):
        chosen = table.reliable.nonzero()[:, 0]
        vectors.append(table.prototype[chosen])
        facts.append(
            torch.stack(
                [
                    table.label[chosen],
                    image.to(chosen.device).expand(len(chosen)),
                    number.to(chosen.device) * KEYS_PER_SAMPLE + chosen,
                ],
                1,
            )
        )
        scores.append((table.purity * table.confidence)[chosen])
    gathered = gather_rows(torch.cat(facts))
    return _Prototypes(
        gather_rows(torch.cat(vectors)),
        gathered[:, 0],
        gathered[:, 1],
        gathered[:, 2],
        gather_rows(torch.cat(scores)),
    )


def _pool(fresh: _Prototypes, bank: PrototypeBank, num_classes: int) -> PrototypePool:
    old_vectors, old_classes, old_images = bank.contents()
    return PrototypePool.build(
        torch.cat([fresh.vectors, old_vectors]),
        torch.cat([fresh.classes, old_classes]),
        torch.cat([fresh.images, old_images]),
        torch.cat([fresh.keys, torch.full_like(old_images, -1)]),
        num_classes,
    )


def _remember(bank: PrototypeBank, fresh: _Prototypes, per_image: int) -> None:
    """Write at most `per_image` best-scored prototypes of each (image, class) to the bank."""
    if not bank.size or not len(fresh.keys):
        return
    order = (-fresh.scores).argsort(stable=True)
    group = (fresh.keys // KEYS_PER_SAMPLE) * len(bank.written) + fresh.classes
    order = order[group[order].argsort(stable=True)]
    _, size = group[order].unique_consecutive(return_counts=True)
    rank = torch.arange(len(order), device=order.device)
    rank = rank - (size.cumsum(0) - size).repeat_interleave(size)
    kept = order[rank < per_image].sort().values  # back to (rank, image, mask) order
    bank.write(fresh.vectors[kept], fresh.classes[kept], fresh.images[kept])
