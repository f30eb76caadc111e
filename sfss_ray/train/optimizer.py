"""The optimiser of a segmentation network and its learning rate schedule."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from sfss_ray.config import OptimConfig
from sfss_ray.models.user_code.layers import weights_of


def build_optimizer(
    body: nn.Module, heads: Iterable[nn.Module], config: OptimConfig
) -> torch.optim.Optimizer:
    """Build the optimiser with four parameter groups: body and heads, each with and without decay.

    Only tensors of two or more dimensions decay, not biases and normalisation weights. A head may
    be part of the body: its weights then learn at the head's rate.

    Args:
        body: The network, or its part that learns at the base rate.
        heads: Modules whose rate is `head_multiplier` times the base rate.
        config: Optimiser, learning rate and weight decay.
    """
    head_weights = [p for head in heads for p in weights_of(head)]
    head_ids = set(map(id, head_weights))
    body_weights = [p for p in weights_of(body) if id(p) not in head_ids]
    groups = []
    for weights, multiplier in ((body_weights, 1.0), (head_weights, config.head_multiplier)):
        trainable = [p for p in weights if p.requires_grad]
        for decayed in (True, False):
            parameters = [p for p in trainable if (p.ndim > 1) == decayed]
            decay = config.weight_decay if decayed else 0.0
            groups.append({"params": parameters, "weight_decay": decay, "multiplier": multiplier})
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def learning_rate(step: int, num_steps: int, config: OptimConfig) -> float:
    """Return the base rate of step 1 .. num_steps: linear warm-up times polynomial decay.

        rate = learning_rate * min(1, step / warm-up steps) * (1 - (step - 1) / num_steps) ** poly_power

    Warm-up takes `warmup_steps` steps, or `warmup_share` of all steps where that is 0.
    """
    warmup_steps = config.warmup_steps or config.warmup_share * num_steps
    warmup = min(1.0, step / warmup_steps) if warmup_steps >= 1 else 1.0
    decay = (1 - (step - 1) / num_steps) ** config.poly_power
    return config.learning_rate * warmup * decay


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set each group's rate to the base rate times the group's multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]
