"""One step of adaptation: the teacher looks, the student learns, the losses add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.config import LossConfig, TrainConfig
from sfss_ray.method.cell_grid import cell_mask_ids, cell_means
from sfss_ray.method.class_mix import Look, mix_classes
from sfss_ray.method.collective import sum_over_workers, world_size
from sfss_ray.method.losses import Push, entropy_sum, pull, segmentation_loss
from sfss_ray.method.mask_table import Opinion, describe_masks
from sfss_ray.method.mask_vote import ClassPrior, relabel
from sfss_ray.method.pairs import Pairs, PrototypePool, draw_anchors, sample_pairs
from sfss_ray.method.prototype_bank import PrototypeBank
from sfss_ray.method.prototypes import (
    gather_prototypes,
    origins_of,
    pool_with_bank,
    remember,
)
from sfss_ray.method.pseudo_labels import ClassThresholds, pixel_weights
from sfss_ray.method.transfer import Fetched, send_arrays
from sfss_ray.models.segmenter import Segmenter


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
    """What a run remembers besides weights: thresholds, class shares and the prototype bank."""

    thresholds: ClassThresholds
    prior: ClassPrior
    bank: PrototypeBank


@torch.no_grad()
def teacher_look(
    teacher: nn.Module,
    segmenter: Segmenter,
    weak: Tensor,
    mask_ids: Tensor,
    prior: ClassPrior,
    config: LossConfig,
    new_step: bool = True,
) -> Look:
    """Pseudo-labels at full size, after the masks' vote; probabilities and embeddings on the grid."""
    logits, embeddings = teacher(weak)
    full = segmenter.upsample(logits, weak.shape[-2:]).softmax(1)
    grid = logits.float().softmax(1)
    if config.teacher_scales != (1.0,) or config.teacher_flip:
        full = mean_over_views(teacher, segmenter, weak, full, config)
        height, width = grid.shape[-2:]
        grid = cell_means(full, (height, width), segmenter.align_corners)
    if config.prior_power > 0:
        prior.update(sum_over_workers(full.sum((0, 2, 3)).double()), new_step)
    if config.prior_power > 0 or config.mask_vote != "none":
        labels, confidence = relabel(full, mask_ids, prior.share(), config)
    else:
        confidence, labels = full.max(1)
    return Look(grid, embeddings, labels, confidence)


def mean_over_views(
    teacher: nn.Module, segmenter: Segmenter, weak: Tensor, plain: Tensor, config: LossConfig
) -> Tensor:
    """(B, C, H, W) probabilities: the mean over zooms and mirror images; `plain` is at hand."""
    views = []
    for scale in config.teacher_scales:
        for mirrored in (False, True)[: 1 + config.teacher_flip]:
            if scale == 1 and not mirrored:
                views.append(plain)
                continue
            view = weak.flip(3) if mirrored else weak
            if scale != 1:
                size = [max(1, round(side * scale)) for side in weak.shape[-2:]]
                view = F.interpolate(view, size=size, mode="bilinear", align_corners=False)
            seen = segmenter.upsample(teacher(view)[0], weak.shape[-2:]).softmax(1)
            views.append(seen.flip(3) if mirrored else seen)
    return torch.stack(views).mean(0)


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
    new_step: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss to call backward on, and its parts for the log; updates thresholds, prior and bank.

    `new_step` is false for a batch that is a further part of the same step's.

    The loss is scaled so that the average of gradients over W workers is the gradient of the loss of
    the whole batch: each part is W * (this worker's sum) / (sum of weights over all workers).
    """
    look = teacher_look(
        teacher, segmenter, batch["weak"], batch["mask_ids"], memory.prior, config.loss, new_step
    )
    memory.thresholds.update(
        sum_over_workers(memory.thresholds.count(look.labels, look.confidence)), new_step
    )
    thresholds = memory.thresholds.thresholds(
        config.loss.class_quantile, config.loss.confidence_cap
    )
    batch, look = mix_classes(batch, look, config.augment.class_mix, seed, segmenter.align_corners)
    asked = None
    if config.loss.contrast_weight > 0:
        # Before the student: the CPU describes masks while the GPU is at the student's forward pass.
        asked = fetch_for_pairs(look, thresholds, batch, config, segmenter.align_corners)
    logits, embeddings = student(batch["strong"])
    weights = pixel_weights(look.labels, look.confidence, thresholds, config.loss)
    full = segmenter.upsample(logits, batch["strong"].shape[-2:])
    seg = label_space_loss(full, look.labels, weights, config.loss)
    parts = {"loss_seg": seg, "kept": (weights > 0).float().mean()}
    loss = seg + 0.0 * embeddings.sum()  # every parameter has a gradient on every worker
    if asked is not None:
        share = ramp(step, config.num_steps, config.loss.ramp)
        pairwise = contrast(embeddings, logits, look, asked, memory, config, seed, share)
        parts |= pairwise
        beta = config.loss.instance_share
        both = beta * pairwise["loss_ins"] + (1 - beta) * pairwise["loss_cls"]
        loss = loss + config.loss.contrast_weight * share * both
    parts["loss"] = loss
    return loss, {name: value.detach() for name, value in parts.items()}


def label_space_loss(logits: Tensor, labels: Tensor, weights: Tensor, config: LossConfig) -> Tensor:
    """Mean over all workers' pixels of weighted cross entropy, or of the student's entropy."""
    if config.label_space == "entropy":
        return _global_mean(entropy_sum(logits), torch.ones_like(weights).sum())
    # paper_like weights scale the loss; class_adaptive ones choose pixels, over which it is a mean.
    chosen = weights if config.thresholds == "class_adaptive" else torch.ones_like(weights)
    return _global_mean(segmentation_loss(logits, labels, weights), chosen.sum())


def _global_mean(total: Tensor, weight: Tensor) -> Tensor:
    everywhere = sum_over_workers(weight.detach()).clamp(min=1e-6)
    return total * world_size() / everywhere


def fetch_for_pairs(
    look: Look,
    thresholds: Tensor,
    batch: Mapping[str, Tensor],
    config: TrainConfig,
    align_corners: bool = False,
) -> Fetched:
    """What pairs are drawn from, but for the student's say, on its way to the CPU: mask ids of cells
    (B, h, w), the teacher's opinion, three values, thresholds (C,), image and sample numbers (B,), and
    (), after class-mix, the highest id that is no pasted one.
    """
    ids = _regions(batch["mask_ids"], look, thresholds, config)
    height, width = look.probabilities.shape[-2:]
    cells = cell_mask_ids(ids, (height, width), config.pairs.cell_share, align_corners)
    pasted = config.augment.class_mix > 0 and config.loss.region_source == "masks"
    own_ids = [batch["own_ids"]] if pasted else []
    opinion = Opinion.of(look.probabilities)
    return Fetched(
        cells,
        opinion.probabilities,
        opinion.confidence,
        opinion.label,
        thresholds,
        batch["image"],
        batch["number"],
        *own_ids,
    )


def contrast(
    embeddings: Tensor,
    logits: Tensor,
    look: Look,
    asked: Fetched,
    memory: Memory,
    config: TrainConfig,
    seed: int,
    share: float,
) -> dict[str, Tensor]:
    """Intra-instance and intra-class losses (means over all workers' anchors), pair statistics.

    Args:
        embeddings, logits: (B, D, h, w), (B, C, h, w), the student's.
        asked: of fetch_for_pairs.
        share: of the ramp; with 0 nothing is drawn, and the bank fills.
    """
    # max and not argmax, which takes four times as long on a CPU: the first of equals in both.
    said = Fetched(logits.max(1).indices.flatten(1))
    cells, probabilities, confidence, label, thresholds, *rest = asked.wait()
    image_numbers, sample_numbers, *own_ids = rest
    images, numbers = image_numbers.tolist(), sample_numbers.tolist()
    # Cell by cell in memory, as vectors of cells are read several times.
    teacher_cells = look.embeddings.flatten(2).transpose(1, 2).contiguous()
    opinion = Opinion(probabilities, confidence, label)
    tables = describe_masks(cells, opinion, teacher_cells, thresholds, config.pairs)
    origins = origins_of(tables, images, numbers, int(own_ids[0]) if own_ids else None)
    fresh = gather_prototypes(tables, origins)
    sums = embeddings.new_zeros(4)
    if share > 0:
        pool = pool_with_bank(fresh, memory.bank, probabilities.shape[2])
        (student_label,) = said.wait()
        draws = [torch.Generator().manual_seed(seed * 1_000_003 + number) for number in numbers]
        chosen = [
            draw_anchors(table, student_label[b], thresholds, config.pairs, draws[b])
            for b, table in enumerate(tables)
        ]
        places = [table.cells[own] for table, own in zip(tables, chosen, strict=True)]
        vectors = vectors_of_cells(embeddings, places)
        area = teacher_cells.shape[1]
        pairs = sample_pairs(tables, chosen, pool, origins, vectors, area, config.pairs, draws)
        temperature = config.loss.temperature
        sums = sum_of_contrasts(vectors, teacher_cells.flatten(0, 1), pool, pairs, temperature)
    remember(memory.bank, fresh, config.pairs.bank_per_image)
    masks = sum(len(t) for t in tables)
    reliable = sum(int(t.reliable.sum()) for t in tables)
    totals, weights = sums.view(2, 2).unbind(1)
    instance, same_class = _global_mean(totals, weights).unbind()
    return {
        "loss_ins": instance,
        "loss_cls": same_class,
        "masks": embeddings.new_full((), masks / len(tables)),
        "reliable": embeddings.new_full((), reliable / max(masks, 1)),
        "anchors": sums[1].detach(),
    }


def vectors_of_cells(embeddings: Tensor, places: list[np.ndarray]) -> Tensor:
    """(A, D) vectors of (B, D, h, w) at the places of each image, grid indices; A in all.

    One gather for the batch: the gradient of each is as large as all embeddings.
    """
    longest = max(len(place) for place in places)
    table = np.stack([np.pad(place, (0, longest - len(place))) for place in places])
    (index,) = send_arrays([table], embeddings.device)
    index = index[:, None].expand(-1, embeddings.shape[1], -1)
    rows = embeddings.flatten(2).gather(2, index).transpose(1, 2).flatten(0, 1)
    if all(len(place) == longest for place in places):
        return rows
    real = [b * longest + np.arange(len(place)) for b, place in enumerate(places)]
    (kept,) = send_arrays([np.concatenate(real)], embeddings.device)
    return rows.index_select(0, kept)


def _regions(
    mask_ids: Tensor,
    look: Look,
    thresholds: Tensor,
    config: TrainConfig,
) -> Tensor:
    """(B, H, W) region ids, 0 = none: the masks, or each image's sure pixels of one pseudo-label."""
    if config.loss.region_source == "pseudo_labels":
        sure = look.confidence >= thresholds[look.labels]
        return torch.where(sure, look.labels + 1, torch.zeros_like(look.labels))
    return mask_ids


def sum_of_contrasts(
    vectors: Tensor, teacher_cells: Tensor, pool: PrototypePool, pairs: Pairs, temperature: float
) -> Tensor:
    """(4,): sum of intra-instance losses, their number, weighted sum of intra-class losses, weight.

    Args:
        vectors: (A, D) the student's embeddings of the anchors.
        teacher_cells: (B * h * w, D) the teacher's, of all cells.
    """
    if not len(pairs.anchors) or not len(pool.vectors):
        nothing = 0.0 * vectors.sum()
        return torch.stack([nothing, vectors.new_zeros(()), nothing, vectors.new_zeros(())])
    # One gather for both: its gradient is a dense (A, R) tensor each time.
    drawn = pairs.similarity.gather(1, torch.cat([pairs.negatives, pairs.class_positives], 1))
    count = pairs.negatives.shape[1]
    push = Push.of(drawn[:, :count], temperature, pairs.negative_valid)
    others = torch.einsum("ad,apd->ap", vectors, teacher_cells[pairs.instance_positives])
    own = pairs.own_weight[:, None] * teacher_cells.index_select(0, pairs.anchors)
    prototype = F.normalize(pairs.instance_prototype_sum - own, dim=1)
    instance = torch.cat([others, (vectors * prototype).sum(1, keepdim=True)], 1)
    ins = pull(instance, push, temperature)
    cls = pull(drawn[:, count:], push, temperature, pairs.class_valid)
    cls_weight = pairs.class_weight * pairs.class_valid.any(1) * push.any_valid
    sums = [ins.sum(), push.any_valid.float().sum(), (cls_weight * cls).sum(), cls_weight.sum()]
    return torch.stack(sums)
