"""The logits in whatever a user's module returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sfss_ray.errors import ConfigError

LOGIT_NAMES = ("out", "logits")
"""Entries and attributes under which networks of the field return their logits."""
_PROBABILITY_TOLERANCE = 1e-3


def find_logits(output: Any, num_classes: int | None = None) -> Tensor:
    """Return the logits (B, C, h, w) in the output of a module.

    Entries and attributes named `out` or `logits` come first, then all tensors in their order. The first
    one of four dimensions and `num_classes` channels is taken, so the outputs of auxiliary heads after
    it are ignored.

    Args:
        output: A tensor, or tensors in a tuple, list, mapping, dataclass or object with `logits`.
        num_classes: C, or None if it is not known. Without a tensor of C channels the first one of four
            dimensions is returned.

    Raises:
        ConfigError: the output has no tensor of four dimensions, or the logits are no floating-point
            numbers.
    """
    maps = [tensor for tensor in _tensors_in(output) if tensor.ndim == 4]
    if not maps:
        raise ConfigError(
            f"the module returns {shape_or_type(output)}: allowed are logits (B, C, h, w), alone, in a"
            " tuple or list, or under 'out' or 'logits'"
        )
    logits = next((tensor for tensor in maps if tensor.shape[1] == num_classes), maps[0])
    if not logits.is_floating_point():
        raise ConfigError(
            f"the module returns {logits.dtype} numbers: return the logits, before argmax"
        )
    return logits


def _tensors_in(output: Any) -> Iterator[Tensor]:
    """Yield the tensors in an output, logits by name first."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from _tensors_in([output[name] for name in LOGIT_NAMES if name in output])
        yield from _tensors_in(list(output.values()))
    elif isinstance(output, (list, tuple)):
        for item in output:
            yield from _tensors_in(item)
    elif output is not None:
        yield from _tensors_in([getattr(output, name, None) for name in LOGIT_NAMES])
        if dataclasses.is_dataclass(output):
            names = [field.name for field in dataclasses.fields(output)]
            yield from _tensors_in([getattr(output, name, None) for name in names])


def shape_or_type(output: Any) -> str:
    """Describe a tensor by its shape, and anything else by its type."""
    return str(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__


def require_gradients(logits: Tensor) -> None:
    """Raise ConfigError if the logits of a pass with gradients have none.

    The images of the pass must require gradients, because all weights of a module may be frozen.
    """
    if not logits.requires_grad:
        raise ConfigError(
            "the module computes its logits without gradients, so it cannot be trained: remove"
            " torch.no_grad(), torch.inference_mode() and .detach() from its forward"
        )


def are_probabilities(outputs: Tensor) -> bool:
    """Whether outputs (B, C, h, w) are nowhere negative and add up to 1 over the classes."""
    if outputs.shape[1] < 2 or bool((outputs < 0).any()):
        return False
    sums = outputs.float().sum(1)
    return torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=_PROBABILITY_TOLERANCE)
