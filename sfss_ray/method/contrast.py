"""Intra-instance and intra-class contrast of a batch: from mask ids to the two losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sfss_ray.config import TrainConfig
from sfss_ray.method.anchors import ImageAnchors, draw_anchors
from sfss_ray.method.boundary_rings import draw_ring_pairs, sum_ring_contrast
from sfss_ray.method.cell_grid import cell_mask_ids
from sfss_ray.method.collective import global_mean
from sfss_ray.method.contrast_net import NetworkOutput
from sfss_ray.method.losses import Push, pull
from sfss_ray.method.mask_table import CellPredictions, MaskOrigins, MaskTable, describe_masks
from sfss_ray.method.pairs import Pairs, sample_pairs
from sfss_ray.method.prototype_bank import PrototypeBank
from sfss_ray.method.prototype_pool import PrototypePool
from sfss_ray.method.prototypes import gather_prototypes, origins_of, pool_with_bank, remember
from sfss_ray.method.teacher_view import TeacherView
from sfss_ray.method.transfer import Fetched, send_arrays


@dataclass(frozen=True)
class PairInputs:
    """What pairs are drawn from, the student's predictions apart."""

    teacher_cells: Tensor
    """(B, h * w, D) embeddings of the teacher's cells, on the networks' device."""
    fetched: Fetched
    """On its way to the CPU: mask ids of cells (B, h, w), the three fields of the teacher's
    `CellPredictions`, thresholds (C,), image and sample numbers (B,), and after class-mix the highest
    mask id () that is not of a pasted mask."""

    def describe(self, config: TrainConfig) -> BatchMasks:
        """Wait for the fetched values and describe the masks of each image."""
        cell_ids, probabilities, confidence, labels, thresholds, *numbers = self.fetched.wait()
        images, samples, *class_mixed = numbers
        predictions = CellPredictions(probabilities, confidence, labels)
        tables = describe_masks(cell_ids, predictions, self.teacher_cells, thresholds, config.pairs)
        sample_numbers = samples.tolist()
        highest_own_id = int(class_mixed[0]) if class_mixed else None
        origins = origins_of(tables, images.tolist(), sample_numbers, highest_own_id)
        return BatchMasks(tables, origins, thresholds, sample_numbers, probabilities.shape[2])


@dataclass(frozen=True)
class BatchMasks:
    """The masks of a batch of B images."""

    tables: list[MaskTable]
    origins: list[MaskOrigins]
    thresholds: Tensor
    """(C,) confidence thresholds, on the CPU."""
    sample_numbers: list[int]
    num_classes: int


def fetch_pair_inputs(
    view: TeacherView,
    thresholds: Tensor,
    batch: Mapping[str, Tensor],
    config: TrainConfig,
    align_corners: bool = False,
) -> PairInputs:
    """Start copying to the CPU what pairs are drawn from.

    Args:
        view: The teacher's, after class-mix.
        thresholds: (C,) confidence thresholds.
        batch: `mask_ids` (B, H, W), `image` and `number` (B,), and `own_ids` after class-mix.
        config: Of the training.
        align_corners: Rule by which the network scales its logits up.
    """
    regions = _region_ids(batch["mask_ids"], view, thresholds, config)
    height, width = view.probabilities.shape[-2:]
    cell_ids = cell_mask_ids(regions, (height, width), config.pairs.cell_share, align_corners)
    class_mixed = config.augment.class_mix > 0 and config.loss.region_source == "masks"
    highest_own_id = [batch["own_ids"]] if class_mixed else []
    predictions = CellPredictions.of(view.probabilities)
    fetched = Fetched(
        cell_ids,
        predictions.probabilities,
        predictions.confidence,
        predictions.labels,
        thresholds,
        batch["image"],
        batch["number"],
        *highest_own_id,
    )
    # Contiguous per cell, because vectors of cells are read several times.
    return PairInputs(view.embeddings.flatten(2).transpose(1, 2).contiguous(), fetched)


def _region_ids(
    mask_ids: Tensor, view: TeacherView, thresholds: Tensor, config: TrainConfig
) -> Tensor:
    """Return (B, H, W) ids of the regions to contrast, 0 = none.

    They are the masks, or in the ablation each image's confident pixels of one pseudo-label.
    """
    if config.loss.region_source == "pseudo_labels":
        confident = view.confidence >= thresholds[view.labels]
        return torch.where(confident, view.labels + 1, torch.zeros_like(view.labels))
    return mask_ids


def contrast_losses(
    student: NetworkOutput,
    inputs: PairInputs,
    bank: PrototypeBank,
    config: TrainConfig,
    seed: int,
    draw: bool = True,
) -> dict[str, Tensor]:
    """Return the intra-instance and intra-class losses, and statistics of the pairs.

    Args:
        student: Its output for the strong views. Both parts have the grid of the embeddings here.
        inputs: From `fetch_pair_inputs`.
        bank: Prototypes of earlier steps. The batch's best prototypes are written to it.
        config: Of the training.
        seed: Of the run. Each image has its own generator.
        draw: False draws no pairs and only fills the bank, as before the ramp.

    Returns:
        `loss_ins` and `loss_cls`, means over the anchors of all workers, 0 without anchors or where
        `contrast_weight` is 0. `loss_ring` the same where `ring_weight` is above 0. `masks` and
        `anchors` per image, share of `reliable` masks.
    """
    embeddings = student.embeddings
    # max, because argmax is four times slower on a CPU. Both return the first of equals.
    student_labels = Fetched(student.logits.max(1).indices.flatten(1))
    masks = inputs.describe(config)
    fresh = gather_prototypes(masks.tables, masks.origins)
    sums = embeddings.new_zeros(4)
    rings = {}
    if config.loss.ring_weight > 0:
        rings["loss_ring"] = embeddings.new_zeros(())
        if draw:
            rings["loss_ring"] = _ring_loss(embeddings, inputs, masks, config, seed)
    if draw and config.loss.contrast_weight > 0:
        pool = pool_with_bank(fresh, bank, masks.num_classes)
        (labels,) = student_labels.wait()
        images = _draw_all_anchors(masks, labels, config, seed)
        vectors = gather_cell_vectors(embeddings, [image.cells for image in images])
        grid_cells = inputs.teacher_cells.shape[1]
        pairs = sample_pairs(images, pool, vectors, grid_cells, config.pairs)
        teacher_cells = inputs.teacher_cells.flatten(0, 1)
        sums = sum_contrasts(vectors, teacher_cells, pool, pairs, config.loss.temperature)
    remember(bank, fresh, config.pairs.bank_per_image)

    num_masks = sum(len(table) for table in masks.tables)
    num_reliable = sum(int(table.reliable.sum()) for table in masks.tables)
    num_images = len(masks.tables)
    counts = embeddings.new_tensor([num_masks, num_images, num_reliable, num_masks])
    num_anchors, images = sums[1:2].detach(), counts[1:2]
    totals, weights = torch.cat([sums, counts, num_anchors, images]).view(5, 2).unbind(1)
    loss_ins, loss_cls, masks_per_image, reliable, anchors = global_mean(totals, weights).unbind()
    return rings | {
        "loss_ins": loss_ins,
        "loss_cls": loss_cls,
        "masks": masks_per_image,
        "reliable": reliable,
        "anchors": anchors,
    }


def _ring_loss(
    embeddings: Tensor, inputs: PairInputs, masks: BatchMasks, config: TrainConfig, seed: int
) -> Tensor:
    """Return the contrast at the boundaries of masks, a mean over the anchors of all workers."""
    pairs, (height, width) = config.pairs, embeddings.shape[-2:]
    images = [
        draw_ring_pairs(
            table,
            (height, width),
            (pairs.anchors_per_image, pairs.positives, pairs.ring_negatives),
            seed * 1_000_003 + number,
        )
        for table, number in zip(masks.tables, masks.sample_numbers, strict=True)
    ]
    vectors = gather_cell_vectors(embeddings, [image.anchors for image in images])
    total, count = sum_ring_contrast(vectors, inputs.teacher_cells, images, config.loss.temperature)
    return global_mean(total, count)


def _draw_all_anchors(
    masks: BatchMasks, student_labels: Tensor, config: TrainConfig, seed: int
) -> list[ImageAnchors]:
    """Draw the anchors of each image, whose sample number seeds its generator."""
    images = []
    for b, (table, origins) in enumerate(zip(masks.tables, masks.origins, strict=True)):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + masks.sample_numbers[b])
        anchors = draw_anchors(table, student_labels[b], masks.thresholds, config.pairs, generator)
        images.append(ImageAnchors(table, origins, anchors, generator))
    return images


def gather_cell_vectors(embeddings: Tensor, cells: list[np.ndarray]) -> Tensor:
    """Gather the embeddings of chosen cells, image after image.

    One gather serves the whole batch, because the gradient of each is as large as all embeddings.

    Args:
        embeddings: (B, D, h, w).
        cells: For each image the grid indices of its cells, A in all.

    Returns:
        (A, D).
    """
    longest = max(len(indices) for indices in cells)
    padded = np.stack([np.pad(indices, (0, longest - len(indices))) for indices in cells])
    (index,) = send_arrays([padded], embeddings.device)
    index = index[:, None].expand(-1, embeddings.shape[1], -1)
    rows = embeddings.flatten(2).gather(2, index).transpose(1, 2).flatten(0, 1)
    if all(len(indices) == longest for indices in cells):
        return rows
    unpadded = [b * longest + np.arange(len(indices)) for b, indices in enumerate(cells)]
    (row_index,) = send_arrays([np.concatenate(unpadded)], embeddings.device)
    return rows.index_select(0, row_index)


def sum_contrasts(
    vectors: Tensor, teacher_cells: Tensor, pool: PrototypePool, pairs: Pairs, temperature: float
) -> Tensor:
    """Pull each anchor to its own mask and to masks of its class, push it away from other classes.

        L_ins = sum over anchors a of l_a(teacher's cells of a's mask, and their mean without a)
        L_cls = sum over anchors a of w_a * l_a(prototypes of other reliable masks of a's class)

    with l the loss of `losses.pair_loss`, which names the source. Both use the same negatives,
    prototypes of classes that a's mask cannot have. w is the purity times confidence of a's mask, 0 if
    it is unreliable.

    Args:
        vectors: (A, D) the student's embeddings of the anchors.
        teacher_cells: (B * h * w, D) the teacher's embeddings of all cells.
        pool: Prototypes that `pairs` index.
        pairs: Of the A anchors.
        temperature: Above 0.

    Returns:
        (4,): L_ins, number of its anchors, L_cls, sum of its weights. Anchors without a valid negative
        or positive do not count. All four are 0 without anchors or prototypes.

    Shapes: A anchors, B images of h x w cells, D the embedding.
    """
    if not len(pairs.anchors) or not len(pool.vectors):
        zero = 0.0 * vectors.sum()
        return torch.stack([zero, vectors.new_zeros(()), zero, vectors.new_zeros(())])
    # One gather for negatives and positives: the gradient of each is a dense (A, R) tensor.
    index = torch.cat([pairs.negatives, pairs.class_positives], 1)
    similarity = pairs.similarity.gather(1, index)
    num_negatives = pairs.negatives.shape[1]
    push = Push.of(similarity[:, :num_negatives], temperature, pairs.negative_valid)

    cells = torch.einsum("ad,apd->ap", vectors, teacher_cells[pairs.instance_positives])
    # The mask's mean leaves the anchor's own cell out, so that no anchor is pulled to itself.
    own_cell = pairs.own_weight[:, None] * teacher_cells.index_select(0, pairs.anchors)
    mean_of_rest = F.normalize(pairs.instance_prototype_sum - own_cell, dim=1)
    same_mask = torch.cat([cells, (vectors * mean_of_rest).sum(1, keepdim=True)], 1)
    loss_ins = pull(same_mask, push, temperature)
    loss_cls = pull(similarity[:, num_negatives:], push, temperature, pairs.class_valid)
    class_weight = pairs.class_weight * pairs.class_valid.any(1) * push.any_valid
    return torch.stack(
        [
            loss_ins.sum(),
            push.any_valid.float().sum(),
            (class_weight * loss_cls).sum(),
            class_weight.sum(),
        ]
    )
