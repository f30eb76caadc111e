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
from sfss_ray.method.contrast_net import ContrastNet
from sfss_ray.method.mask_vote import ClassPrior, relabel


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


@torch.no_grad()
def predict_teacher(
    teacher: ContrastNet,
    batch: Mapping[str, Tensor],
    prior: ClassPrior,
    config: LossConfig,
    first_part: bool = True,
) -> TeacherView:
    """Predict pseudo-labels of the weak views, after the vote of the masks.

    Args:
        teacher: In eval mode.
        batch: `weak` (B, 3, H, W) and `mask_ids` (B, H, W), 0 = no mask.
        prior: Running class shares, updated if `prior_power` is above 0.
        config: Views, vote and prior.
        first_part: False for the second and later parts of an accumulated batch.
    """
    weak, segmenter = batch["weak"], teacher.segmenter
    logits, embeddings = teacher(weak)
    full = segmenter.upsample(logits, weak.shape[-2:]).softmax(1)
    height, width = embeddings.shape[-2:]
    several_views = config.teacher_scales != (1.0,) or config.teacher_flip
    if several_views:
        full = average_views(teacher, weak, full, config)
    if several_views or logits.shape[-2:] != embeddings.shape[-2:]:
        # Means of pixels, for logits that are finer than the embeddings and for coarser ones: the masks
        # of cells are those of the same pixels.
        grid = cell_means(full, (height, width), segmenter.align_corners)
    else:
        grid = logits.float().softmax(1)

    if config.prior_power > 0:
        prior.update(sum_over_workers(full.sum((0, 2, 3)).double()), first_part)
    if config.prior_power > 0 or config.mask_vote != "none":
        labels, confidence = relabel(full, batch["mask_ids"], prior.share(), config)
    else:
        confidence, labels = full.max(1)
    return TeacherView(grid, embeddings, labels, confidence)


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
            logits, _ = teacher(view)
            probabilities = teacher.segmenter.upsample(logits, weak.shape[-2:]).softmax(1)
            views.append(probabilities.flip(3) if mirrored else probabilities)
    return torch.stack(views).mean(0)
