"""The teacher's predictions for a batch: pseudo-labels, confidence, probabilities and embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sfss_ray.config import LossConfig
from sfss_ray.method.cell_grid import cell_means
from sfss_ray.method.collective import sum_over_workers
from sfss_ray.method.concept_evidence import CONCEPT_SCORES, add_concepts
from sfss_ray.method.contrast_net import ContrastNet, NetworkOutput
from sfss_ray.method.mask_evidence import Evidence, MaskPixels
from sfss_ray.method.mask_metric import MetricTargets
from sfss_ray.method.mask_neighbours import ask_neighbours
from sfss_ray.method.mask_space import DescribedMasks, describe_masks
from sfss_ray.method.mask_vote import plausible_classes, relabel
from sfss_ray.method.memory import Memory
from sfss_ray.method.source_vote import pool_with_source
from sfss_ray.models.segmenter import Segmenter


@dataclass(frozen=True)
class TeacherView:
    """What the teacher predicts for the weak views of a batch."""

    probabilities: Tensor
    """(B, C, h, w) on the grid of the embeddings."""
    embeddings: Tensor
    """(B, D, h, w) of length 1."""
    labels: Tensor
    """(B, H, W) int64 pseudo-labels."""
    confidence: Tensor
    """(B, H, W) probability of each pseudo-label."""
    plausible: Tensor | None = None
    """(B, k, H, W) classes that the rule-out contrast leaves possible, where it is on."""
    pixel_probabilities: Tensor | None = None
    """(B, C, H, W), where the contrast of outputs is on."""
    metric: MetricTargets | None = None
    """Of the masks before class-mix, where their space is learned and the ring has masks."""


@torch.no_grad()
def predict_teacher(
    teacher: ContrastNet,
    batch: Mapping[str, Tensor],
    memory: Memory,
    config: LossConfig,
    first_part: bool = True,
    source: Segmenter | None = None,
) -> TeacherView:
    """Predict pseudo-labels of the weak views, after the vote of the masks.

    Args:
        teacher: In eval mode.
        batch: `weak` (B, 3, H, W) and `mask_ids` (B, H, W), 0 = no mask. To ask the masks' neighbours
            also `image` (B,) and `mask_geometry` (B, ids, 4). With masks that have classes also
            `concept_scores` (B, C, H, W), see concept_evidence.py.
        memory: Its class prior is updated if `prior_power` is above 0, and its neighbours if asked.
        config: Views, vote and prior.
        first_part: False for the second and later parts of an accumulated batch.
        source: The source model in eval mode, if it votes.
    """
    weak, segmenter = batch["weak"], teacher.segmenter
    output: NetworkOutput = teacher(weak)
    logits, embeddings, _ = output
    full = segmenter.upsample(logits, weak.shape[-2:]).softmax(1)
    height, width = embeddings.shape[-2:]
    several_views = config.teacher_scales != (1.0,) or config.teacher_flip
    if several_views:
        full = average_views(teacher, weak, full, config)
    if source is not None:
        with torch.autocast(weak.device.type, torch.bfloat16, enabled=teacher.autocast_to_bf16):
            source_logits = source.logits(weak)
        full = pool_with_source(full, source_logits.float().softmax(1), config.source_vote)
    if several_views or source is not None or logits.shape[-2:] != embeddings.shape[-2:]:
        # Means of pixels, for logits that are finer than the embeddings and for coarser ones: the masks
        # of cells are those of the same pixels.
        grid = cell_means(full, (height, width), segmenter.align_corners)
    else:
        grid = logits.float().softmax(1)

    if config.prior_power > 0:
        memory.prior.update(sum_over_workers(full.sum((0, 2, 3)).double()), first_part)
    evidence, metric = _gather_evidence(full, batch, memory, config, (teacher, output))
    labels, confidence, plausible = _label_pixels(full, evidence, config)
    return TeacherView(
        grid,
        embeddings,
        labels,
        confidence,
        plausible,
        full if config.output_weight > 0 else None,
        metric,
    )


def _gather_evidence(
    full: Tensor,
    batch: Mapping[str, Tensor],
    memory: Memory,
    config: LossConfig,
    prediction: tuple[ContrastNet, NetworkOutput],
) -> tuple[Evidence | None, MetricTargets | None]:
    """Return the evidence of pixels and masks, None where pixels alone decide, and the metric's targets.

    Args:
        full: (B, C, H, W) probabilities.
        batch: As of `predict_teacher`.
        memory: Its neighbours are asked and updated.
        config: Of the vote.
        prediction: The teacher, and its output for the weak views.
    """
    rules_out = config.rule_out_weight > 0
    concepts = batch.get(CONCEPT_SCORES) if config.concept_weight > 0 else None
    corrects = config.prior_power > 0 or concepts is not None
    asks_neighbours = memory.neighbours is not None
    if config.mask_vote == "none" and not (rules_out or corrects or asks_neighbours):
        return None, None
    prior = memory.prior.share()
    evidence = Evidence.gather(full, batch["mask_ids"], prior, config.prior_power)
    if concepts is not None:
        evidence = add_concepts(evidence, concepts, config.concept_weight)
    if memory.neighbours is None:
        return evidence, None
    teacher, output = prediction
    masks = evidence.masks
    described = describe_masks(masks, batch, teacher.mask_space, output.mask_features)
    weight, pooling = config.neighbour_weight or 0.0, config.neighbour_pooling
    evidence, opinions = ask_neighbours(evidence, described, memory.neighbours, weight, pooling)
    if opinions is None or config.neighbour_space != "learned":
        return evidence, None
    return evidence, _metric_targets(described, opinions, masks)


def _metric_targets(
    described: DescribedMasks, opinions: Tensor, masks: MaskPixels
) -> MetricTargets:
    numbers, per_image = described.numbers, masks.ids_per_image
    rows = torch.div(numbers, per_image, rounding_mode="floor")
    (embeddings,) = described.blocks
    return MetricTargets(
        embeddings, described.geometry, opinions, described.images, rows, numbers % per_image
    )


def _label_pixels(
    full: Tensor, evidence: Evidence | None, config: LossConfig
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return labels and confidence (B, H, W), and the plausible classes (B, k, H, W) if used."""
    if evidence is None:
        confidence, labels = full.max(1)
        return labels, confidence, None
    labels, confidence = relabel(evidence, config)
    if config.rule_out_weight == 0:
        return labels, confidence, None
    by_pixel = config.rule_out_by == "pixel"
    return labels, confidence, plausible_classes(evidence, config.rule_out_top_k, by_pixel)


def average_views(teacher: ContrastNet, weak: Tensor, plain: Tensor, config: LossConfig) -> Tensor:
    """Return the mean of the teacher's probabilities over zooms and mirror images.

    Args:
        teacher: In eval mode.
        weak: (B, 3, H, W) weak views.
        plain: (B, C, H, W) probabilities of the unchanged view, which are not computed again.
        config: `teacher_scales` and `teacher_flip`.

    Returns:
        (B, C, H, W) probabilities.
    """
    views = []
    for scale in config.teacher_scales:
        for mirrored in (False, True)[: 1 + config.teacher_flip]:
            if scale == 1 and not mirrored:
                views.append(plain)
                continue
            view = weak.flip(3) if mirrored else weak
            if scale != 1:
                multiple = teacher.segmenter.size_multiple
                sides = [side * scale / multiple for side in weak.shape[-2:]]
                size = [multiple * max(1, round(side)) for side in sides]
                view = F.interpolate(view, size=size, mode="bilinear", align_corners=False)
            logits = teacher(view).logits
            probabilities = teacher.segmenter.upsample(logits, weak.shape[-2:]).softmax(1)
            views.append(probabilities.flip(3) if mirrored else probabilities)
    return torch.stack(views).mean(0)
