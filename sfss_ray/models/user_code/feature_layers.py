"""The layer of a user's module that provides the features: by name, or found by a traced pass."""

from __future__ import annotations

import contextlib
import difflib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfss_ray.errors import ConfigError
from sfss_ray.models.user_code.layers import layer_named, named_layers
from sfss_ray.models.user_code.module_outputs import require_gradients, shape_or_type

INPUT = ":input"
"""The end of a feature layer's name that selects what the layer reads instead of what it returns."""
FINE_STRIDE = 4
"""Pixels per cell up to which features are fine enough. The contrast averages finer cells to these."""
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def check_feature_layer(module: nn.Module, feature_layer: str) -> None:
    """Raise ConfigError, with similar names, if a module has no such layer."""
    name = feature_layer.removesuffix(INPUT)
    layer_names = [layer_name for layer_name, _ in named_layers(module) if layer_name]
    if name in layer_names:
        return
    similar = difflib.get_close_matches(name, layer_names, n=5, cutoff=0.4) or layer_names[-5:]
    raise ConfigError(
        f"the module has no layer {name!r}: similar names are {', '.join(similar)}; every name is in"
        " module.named_modules()"
    )


@contextlib.contextmanager
def recorded_features(module: nn.Module, feature_layer: str) -> Iterator[list[Any]]:
    """Record what a feature layer returns, or reads, in each pass inside the block.

    The hook exists inside the block only, so that the user's module stays unchanged and copyable.
    """
    records: list[Any] = []
    layer = layer_named(module, feature_layer.removesuffix(INPUT))
    if feature_layer.endswith(INPUT):
        hook = layer.register_forward_pre_hook(
            lambda _module, arguments: records.append(arguments[0] if arguments else None)
        )
    else:
        hook = layer.register_forward_hook(
            lambda _module, _arguments, output: records.append(output)
        )
    try:
        yield records
    finally:
        hook.remove()


def single_features(records: list[Any], feature_layer: str) -> Tensor:
    """Return the features of one pass; ConfigError if they are not one tensor (B, F, h, w)."""
    if len(records) != 1:
        raise ConfigError(
            f"feature layer {feature_layer!r} ran {len(records)} times in one pass: name a layer that"
            " runs once"
        )
    (features,) = records
    if not isinstance(features, Tensor) or features.ndim != 4:
        verb = "reads" if feature_layer.endswith(INPUT) else "returns"
        raise ConfigError(
            f"feature layer {feature_layer!r} {verb} {shape_or_type(features)}: allowed are features"
            " (B, F, h, w); name a convolution, a normalisation or a block"
        )
    return features


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a convolution in a traced pass."""

    name: str
    layer: nn.Conv2d | nn.ConvTranspose2d
    height: int
    """Rows of the grid that it reads."""
    output: Tensor


def find_feature_layer(
    module: nn.Module, images: Tensor, logits_of: Callable[[Any], Tensor]
) -> str:
    """Return the feature layer of a module.

    It is what the last convolution that makes class scores reads: the last one whose outputs are as many
    as the classes and reach the logits. If a cell there is more than FINE_STRIDE pixels wide, and class
    scores of finer stages are added to it, the finest of these stages is taken instead.

    In a module without such a convolution the last one before the logits counts: what it reads if its
    outputs are a multiple of the classes, as with PixelShuffle, and else what it returns.

    Convolutions that run more than once in a pass, and those that only enlarge class scores, are left
    out.

    Args:
        module: In eval mode.
        images: (B, 3, H, W) as the module takes them.
        logits_of: Returns the logits in the module's output.

    Raises:
        ConfigError: gradients cannot pass through the module, or it has no convolution that counts.
    """
    calls, logits = _trace(module, images, logits_of)
    require_gradients(logits)
    reaching = _reaching(calls, logits)
    num_outputs = logits.shape[1]
    scores = [
        call
        for call in reaching
        if call.layer.out_channels == num_outputs and not _only_enlarges(call.layer)
    ]
    if not reaching:
        raise ConfigError(
            "no convolution that runs once leads to the logits of the module: give feature_layer, the"
            " name of a layer that returns features (B, F, h, w)"
        )
    if not scores:
        last = reaching[-1]
        return last.name + (INPUT if last.layer.out_channels % num_outputs == 0 else "")
    last = scores[-1]
    if images.shape[-2] > FINE_STRIDE * last.height:
        finer = [call for call in scores if call.height > last.height and _is_added(call, logits)]
        last = max([*reversed(finer), last], key=lambda call: call.height)
    return last.name + INPUT


def _trace(
    module: nn.Module, images: Tensor, logits_of: Callable[[Any], Tensor]
) -> tuple[list[_Call], Tensor]:
    """Return the calls of all convolutions in one pass, in order, and the logits."""
    calls: list[_Call] = []

    def hook_for(name: str, layer: Any) -> Callable[..., None]:
        def record(_module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if arguments and isinstance(output, Tensor) and output.ndim == 4:
                calls.append(_Call(name, layer, arguments[0].shape[-2], output))

        return record

    hooks = [
        layer.register_forward_hook(hook_for(name, layer))
        for name, layer in named_layers(module)
        if isinstance(layer, _CONVOLUTIONS) and name
    ]
    try:
        with torch.enable_grad():
            # A copy, because a module may normalise its input in place.
            logits = logits_of(module(images.detach().requires_grad_().clone()))
    finally:
        for hook in hooks:
            hook.remove()
    return calls, logits


def _reaching(calls: list[_Call], logits: Tensor) -> list[_Call]:
    """Return the calls, of convolutions that ran once, whose outputs influence the logits."""
    runs = Counter(call.name for call in calls)
    once = [call for call in calls if runs[call.name] == 1 and call.output.requires_grad]
    if not once:
        return []
    outputs = [call.output for call in once]
    gradients = torch.autograd.grad(
        logits.float().sum(), outputs, retain_graph=True, allow_unused=True
    )
    return [call for call, gradient in zip(once, gradients, strict=True) if gradient is not None]


def _only_enlarges(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Whether a layer maps each channel to itself, as an interpolation by convolution does."""
    if layer.in_channels != layer.out_channels:
        return False
    if layer.groups == layer.in_channels:
        return True
    if layer.groups != 1:
        return False
    mixed = layer.weight.detach().abs().sum((2, 3)).clone().fill_diagonal_(0)
    return not bool(mixed.any())


def _is_added(call: _Call, logits: Tensor) -> bool:
    """Whether the outputs of a call are class scores: the logits of a class see that channel alone."""
    (gradient,) = torch.autograd.grad(logits[:, 0].float().sum(), call.output, retain_graph=True)
    per_channel = gradient.abs().sum((0, 2, 3))
    return bool(per_channel[0] > 0) and not bool(per_channel[1:].any())
