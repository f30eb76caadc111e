"""Recognition of outputs that a module forces into [0, 1], as a sigmoid does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sfss_ray.models.user_code.layers import named_layers

_FACTORS = (1e6, -1e6)
"""Factors of a layer's outputs that move even tiny logits out of [0, 1]."""
_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def are_bounded(
    module: nn.Module, images: list[Tensor], logits_of: Callable[[Any], Tensor]
) -> bool:
    """Whether a module forces its outputs into [0, 1].

    The logits of an untrained module may lie there by chance. Therefore the outputs of the last layer
    that influences them are multiplied by a million and by minus a million: logits follow, and a
    sigmoid's outputs stay.
    Outputs that are the same at every pixel are never bounded, because nothing tells them from logits.

    Args:
        module: In eval mode. Its weights stay as they are.
        images: Several random images (1, 3, H, W) as the module takes them.
        logits_of: Returns the logits in the module's output.
    """
    layers: list[nn.Module] = []

    def run(image: Tensor) -> Tensor:
        return logits_of(module(image.clone()))  # a module may normalise its input in place

    with torch.no_grad():
        with _hooks(module, lambda layer, _arguments, _output: layers.append(layer)):
            outputs = run(images[0])
        if not lie_in_unit_range(outputs) or _is_constant(outputs):
            return False
        if not all(lie_in_unit_range(run(image)) for image in images[1:]):
            return False
        for layer in dict.fromkeys(reversed(layers)):  # the last call first
            results = []
            for factor in _FACTORS:
                with _multiplied(layer, factor):
                    results.append(run(images[0]))
            # Equal outputs do not depend on the layer.
            if not all(torch.equal(result, outputs) for result in results):
                return all(lie_in_unit_range(result) for result in results)
    return False


def lie_in_unit_range(outputs: Tensor) -> bool:
    """Whether all outputs are in [0, 1]."""
    return bool(((outputs >= 0) & (outputs <= 1)).all())


def _is_constant(outputs: Tensor) -> bool:
    """Whether each channel has one value at all pixels."""
    return torch.equal(outputs.amax((2, 3)), outputs.amin((2, 3)))


@contextlib.contextmanager
def _hooks(module: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    """Call a hook after each convolution and each linear layer inside the block."""
    handles = [
        layer.register_forward_hook(hook)
        for _, layer in named_layers(module)
        if isinstance(layer, _LAYERS)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _multiplied(layer: nn.Module, factor: float) -> Iterator[None]:
    """Multiply the outputs of a layer inside the block."""

    def multiply(_layer: nn.Module, _arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        return output * factor

    handle = layer.register_forward_hook(multiply)
    try:
        yield
    finally:
        handle.remove()
