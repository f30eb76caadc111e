"""The losses of one adaptation step: the teacher predicts, the student learns from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfss_ray.config import LossConfig, TrainConfig
from sfss_ray.method.cell_grid import cell_means
from sfss_ray.method.class_mix import mix_classes
from sfss_ray.method.collective import global_mean, sum_over_workers, world_size
from sfss_ray.method.contrast import contrast_losses, fetch_pair_inputs
from sfss_ray.method.contrast_net import ContrastNet, NetworkOutput
from sfss_ray.method.losses import entropy_sum, rule_out_sum, segmentation_loss
from sfss_ray.method.mask_metric import MetricOptions, metric_loss
from sfss_ray.method.mask_space import MaskSpace
from sfss_ray.method.memory import Memory
from sfss_ray.method.output_contrast import contrast_outputs
from sfss_ray.method.pseudo_labels import accepted_pixels, pixel_weights
from sfss_ray.method.teacher_view import TeacherView, predict_teacher
from sfss_ray.models.segmenter import Segmenter

_LEAST_KEPT = 0.05
"""Share of pixels that the rule-out contrast is divided by where L_seg keeps fewer."""


@dataclass(frozen=True)
class TeacherStudent:
    """The networks of a step, and the memory that a step updates."""

    student: nn.Module
    """Forward pass of a `ContrastNet`, possibly wrapped by DDP or torch.compile."""
    teacher: ContrastNet
    memory: Memory
    space: MaskSpace | None = None
    """The student's, not wrapped, where masks have a space of their own."""
    source: Segmenter | None = None
    """The source model in eval mode, where it votes."""


@dataclass(frozen=True)
class StepInfo:
    """Where in the run a part of a batch belongs."""

    step: int
    """1 .. num_steps."""
    seed: int
    """Seed of the run. With the sample numbers it decides all random draws."""
    first_part: bool = True
    """False for the second and later parts of an accumulated batch."""


def adaptation_losses(
    networks: TeacherStudent, batch: Mapping[str, Tensor], config: TrainConfig, info: StepInfo
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a batch and its parts, and update thresholds, prior and bank.

        loss = loss_seg + contrast_weight * ramp * (beta * loss_ins + (1 - beta) * loss_cls)
                        + rule_out_weight * ramp * loss_rule_out + output_weight * ramp * loss_output
                        + ring_weight * ramp * loss_ring + metric_weight * loss_metric

    with beta = `instance_share`. A part of weight 0 is not computed.

    DDP averages gradients over W workers, so each term is W * (this worker's sum) / (sum of weights
    over all workers): the average is then the gradient of the mean over the whole batch.

    loss_seg is a mean over pixels: the network's logits are scaled up from whatever grid they have. The
    other two are means over anchors, which are cells of the features' grid.

    Args:
        networks: Student, teacher and memory.
        batch: `weak` and `strong` views (B, 3, H, W) in [0, 1], `mask_ids` (B, H, W), and per image
            `image`, its number in the data set, and `number`, its sample number in the run.
        config: Of the training.
        info: Step and seed.

    Returns:
        The loss with its graph, and detached scalars for the log.
    """
    segmenter = networks.teacher.segmenter
    batch, view, thresholds = _pseudo_label(networks, batch, config, info)
    pair_inputs = None
    if config.loss.contrast_weight > 0 or config.loss.ring_weight > 0:
        # Before the student, so that the CPU describes masks during the GPU's forward pass.
        pair_inputs = fetch_pair_inputs(view, thresholds, batch, config, segmenter.align_corners)
    output: NetworkOutput = networks.student(batch["strong"])

    accepted = accepted_pixels(view.labels, view.confidence, thresholds, config.loss)
    full_logits = segmenter.upsample(output.logits, batch["strong"].shape[-2:])
    loss_seg = label_space_loss(full_logits, view.labels, accepted, config.loss)
    metrics = {"loss_seg": loss_seg, "kept": _share(accepted)}
    # DDP needs a gradient of every parameter on every worker, the projection head's too.
    loss = loss_seg + 0.0 * output.embeddings.sum()

    ramp_value = ramp(info.step, config.num_steps, config.loss.ramp)
    mask_parts = mask_losses(full_logits, view, batch, accepted, config.loss)
    for name, (weight, part) in mask_parts.items():
        metrics[name] = part
        loss = loss + weight * ramp_value * part
    if networks.space is not None and networks.space.space == "learned":
        options = MetricOptions(config.loss.temperature, info.seed)
        metrics["loss_metric"] = _metric_part(networks, output, view, batch, options)
        loss = loss + config.loss.metric_weight * metrics["loss_metric"]
    if pair_inputs is not None:
        on_cells = _on_cells(output, full_logits, segmenter.align_corners)
        contrast_metrics = contrast_losses(
            on_cells, pair_inputs, networks.memory.bank, config, info.seed, draw=ramp_value > 0
        )
        metrics |= contrast_metrics
        loss = loss + ramp_value * _weigh_contrasts(contrast_metrics, config.loss)
    metrics["loss"] = loss
    return loss, {name: scalar.detach() for name, scalar in metrics.items()}


def _weigh_contrasts(parts: Mapping[str, Tensor], config: LossConfig) -> Tensor:
    """Return the weighted sum of the contrasts of pairs, before the ramp."""
    beta = config.instance_share
    mixed = beta * parts["loss_ins"] + (1 - beta) * parts["loss_cls"]
    total = config.contrast_weight * mixed
    return total + config.ring_weight * parts["loss_ring"] if "loss_ring" in parts else total


def _metric_part(
    networks: TeacherStudent,
    output: NetworkOutput,
    view: TeacherView,
    batch: Mapping[str, Tensor],
    options: MetricOptions,
) -> Tensor:
    """Return the loss of the learned space, 0 while the ring is empty."""
    space, neighbours = networks.space, networks.memory.neighbours
    assert space is not None
    assert output.mask_features is not None
    assert neighbours is not None
    # DDP needs a gradient of every parameter also then.
    nothing = sum(
        (parameter.sum() for parameter in space.parameters()), output.logits.new_zeros(())
    )
    if view.metric is None:  # other workers may have masks, and this one takes part in their mean
        none = 0.0 * (nothing + output.mask_features.sum())
        return global_mean(none, output.logits.new_zeros(()))
    part = metric_loss(output.mask_features, batch, view.metric, space, neighbours, options)
    return part + 0.0 * nothing


def _pseudo_label(
    networks: TeacherStudent, batch: Mapping[str, Tensor], config: TrainConfig, info: StepInfo
) -> tuple[dict[str, Tensor], TeacherView, Tensor]:
    """Let the teacher label a batch, update the thresholds and mix classes.

    Returns:
        The mixed batch, the teacher's view of it, and the thresholds (C,).
    """
    memory, loss = networks.memory, config.loss
    view = predict_teacher(networks.teacher, batch, memory, loss, info.first_part, networks.source)
    counts = memory.thresholds.count(view.labels, view.confidence)
    memory.thresholds.update(sum_over_workers(counts), info.first_part)
    thresholds = memory.thresholds.thresholds(loss.class_quantile, loss.confidence_cap)
    align_corners = networks.teacher.segmenter.align_corners
    mixed, view = mix_classes(batch, view, config.augment.class_mix, info.seed, align_corners)
    return mixed, view, thresholds


@torch.no_grad()
def _on_cells(output: NetworkOutput, full_logits: Tensor, align_corners: bool) -> NetworkOutput:
    """Return the student's output with scores of the classes on the grid of the embeddings.

    They are the logits, or where those have another grid the mean probabilities of each cell's pixels,
    as the teacher's are. Only their order is used.
    """
    height, width = output.embeddings.shape[-2:]
    if output.logits.shape[-2:] == (height, width):
        return output
    scores = cell_means(full_logits.softmax(1), (height, width), align_corners)
    return output._replace(logits=scores)


def mask_losses(
    logits: Tensor,
    view: TeacherView,
    batch: Mapping[str, Tensor],
    accepted: Tensor,
    config: LossConfig,
) -> dict[str, tuple[float, Tensor]]:
    """Return weight and value of each loss in which masks act on the student's outputs.

    The rule-out contrast is summed over the pixels whose pseudo-label is not accepted, and divided by
    the number of accepted ones, on all workers. With `class_adaptive` thresholds the former then weigh
    as much as the latter in L_seg, unless fewer than 5 % are accepted: the divisor never falls below
    that.

    Args:
        logits: (B, C, H, W) of the student.
        view: The teacher's, after class-mix.
        batch: `mask_ids` (B, H, W), after class-mix.
        accepted: (B, H, W) bool.
        config: Its weights decide which losses are computed.
    """
    losses = {}
    if view.plausible is not None:
        total = rule_out_sum(logits, view.plausible, ~accepted)
        counts = torch.stack(
            [accepted.sum(), accepted.new_tensor(accepted.numel(), dtype=torch.long)]
        )
        num_kept, num_pixels = sum_over_workers(counts)
        part = total * world_size() / torch.maximum(num_kept, _LEAST_KEPT * num_pixels)
        losses["loss_rule_out"] = (config.rule_out_weight, part)
    if view.pixel_probabilities is not None:
        part = contrast_outputs(
            logits.softmax(1), view.pixel_probabilities, batch["mask_ids"], config.temperature
        )
        losses["loss_output"] = (config.output_weight, part)
    return losses


def label_space_loss(
    logits: Tensor, labels: Tensor, accepted: Tensor, config: LossConfig
) -> Tensor:
    """Return weighted cross entropy or the student's entropy, averaged over all workers' pixels.

    Args:
        logits: (B, C, H, W) of the student.
        labels: (B, H, W) pseudo-labels.
        accepted: (B, H, W) bool, see `pixel_weights`. With `class_adaptive` thresholds the mean is over
            these pixels. With `paper_like` ones it is over all pixels. Entropy ignores them.
        config: `label_space` and `thresholds`.
    """
    weights = pixel_weights(accepted, config)
    if config.label_space == "entropy":
        return global_mean(entropy_sum(logits), torch.ones_like(weights).sum())
    counted = weights if config.thresholds == "class_adaptive" else torch.ones_like(weights)
    return global_mean(segmentation_loss(logits, labels, weights), counted.sum())


def _share(chosen: Tensor) -> Tensor:
    """Return the share of all workers' pixels that are chosen."""
    return global_mean(chosen.float().sum(), torch.ones_like(chosen, dtype=torch.float32).sum())


def ramp(step: int, num_steps: int, shares: tuple[float, float]) -> float:
    """Return 0 up to the first share of the run, 1 from the second on, linear in between."""
    start, end = (share * num_steps for share in shares)
    if step >= end:
        return 1.0
    return (step - start) / (end - start) if step > start else 0.0
