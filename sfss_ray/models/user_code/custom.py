"""A user's own module as a segmenter: it returns logits, and a named layer provides the features."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sfss_ray.errors import ConfigError
from sfss_ray.models.card import Card
from sfss_ray.models.segmenter import Segmenter, SegmenterOutput
from sfss_ray.models.user_code.carried_module import first_line
from sfss_ray.models.user_code.layers import (
    TRAIN_METHODS,
    layer_named,
    layers_of,
    named_layers,
    torch_methods,
)

CUSTOM = "custom"
"""The network's name in model files, which hold its weights but not its code."""


class WrappedSegmenter(Segmenter):
    """A user's module as a segmenter, with the output of a named layer as features.

    Features and logits keep their own grids, see `SegmenterOutput`.

    Args:
        module: Maps prepared images (B, 3, H, W) to logits (B, C, h, w), see `wrap_model`.
        feature_layer: Name of the layer.
        card: The preprocessing.
        size: (height, width) of the image that is passed through to learn the shapes.

    Raises:
        ConfigError: there is no such layer, or it or the module returns something else than expected.
    """

    def __init__(self, module: nn.Module, feature_layer: str, card: Card, size: tuple[int, int]):
        super().__init__(module, nn.Identity())
        self.use_card(card)
        _check_layer(module, feature_layer)
        self.feature_layer = feature_layer
        self.example_size = size
        self._feature_width, self.num_outputs = self._probe()

    @property
    def feature_width(self) -> int:
        """F, the number of channels of the named layer."""
        return self._feature_width

    def forward(self, images: Tensor) -> SegmenterOutput:
        """Return features and logits, each on its own grid, for images (B, 3, H, W) in [0, 1]."""
        return SegmenterOutput(*self._run_body(images))

    def logits(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Return the module's own logits at `size`, by default at the size of the images."""
        return self.upsample(self._run_body(images)[1], size or images.shape[-2:])

    def freeze_idle_weights(self) -> None:
        """Stop training the weights that influence neither logits nor features.

        Data-parallel training would wait forever for their gradients.
        """
        weights = [p for p in self.parameters() if p.requires_grad]
        self.eval()  # a pass in training mode would move BatchNorm's statistics
        with torch.enable_grad():
            features, logits = self._run_body(self._example_image())
            total = features.float().sum() + logits.float().sum()
            gradients = torch.autograd.grad(total, weights, allow_unused=True)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.requires_grad_(gradient is not None)
        # Modules may store tensors in attributes, and tensors with gradients cannot be copied. A pass
        # without gradients replaces them.
        with torch.no_grad():
            self._run_body(self._example_image())

    # The user's layers may have attributes such as `children` or `modules`, which hide the methods by
    # which torch traverses a network. The following methods uncover torch's own.

    def train(self, mode: bool = True) -> WrappedSegmenter:
        """Set the training mode, as `nn.Module.train` does."""
        with torch_methods(self, TRAIN_METHODS):
            super().train(mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return all weights and buffers, as `nn.Module.state_dict` does."""
        with torch_methods(self, ("state_dict",)):
            return super().state_dict(*args, **kwargs)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """Return (name, layer) for every layer, as `nn.Module.named_modules` does."""
        with torch_methods(self, ("named_modules",)):
            layers = list(super().named_modules(*args, **kwargs))
        return iter(layers)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> WrappedSegmenter:
        with torch_methods(self, ("children", "named_children")):
            super()._apply(fn, recurse)
        return self

    def _run_body(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of the named layer and the module's own logits."""
        layer_outputs: list[Any] = []
        layer = layer_named(self.body, self.feature_layer)
        # The hook exists for this pass only, so that the user's module stays unchanged and copyable.
        hook = layer.register_forward_hook(
            lambda _module, _inputs, output: layer_outputs.append(output)
        )
        try:
            output = self.body(self.prepare(images))
        finally:
            hook.remove()
        return _features_of(layer_outputs, self.feature_layer), _logits_of(output)

    def _example_image(self) -> Tensor:
        return self.mean.new_zeros(1, 3, *self.example_size)

    @torch.no_grad()
    def _probe(self) -> tuple[int, int]:
        """Return the numbers of feature channels and of outputs, from a pass of an empty image."""
        modes = [(layer, layer.training) for layer in layers_of(self)]
        try:
            features, logits = self._run_on_example()
        finally:
            for layer, training in modes:
                layer.training = training
        return features.shape[1], logits.shape[1]

    def _run_on_example(self) -> tuple[Tensor, Tensor]:
        self.eval()
        parameter = next(self.parameters(), None)
        if parameter is not None:
            self.to(parameter.device)
        try:
            return self._run_body(self._example_image())
        except ConfigError:
            raise
        except Exception as error:  # a user's module may raise anything
            height, width = self.example_size
            raise ConfigError(
                f"the module failed on an image of {height}x{width} pixels ({type(error).__name__}:"
                f" {first_line(error)}): it must take (B, 3, H, W) and return logits;"
                " example_size=(height, width) sets another size"
            ) from error


def _check_layer(module: nn.Module, name: str) -> None:
    """Raise ConfigError if a module has no layer of a name."""
    layer_names = [layer_name for layer_name, _ in named_layers(module) if layer_name]
    if name in layer_names:
        return
    similar = difflib.get_close_matches(name, layer_names, n=5, cutoff=0.4) or layer_names[-5:]
    raise ConfigError(
        f"the module has no layer {name!r}: similar names are {', '.join(similar)}; every name is in"
        " module.named_modules()"
    )


def _features_of(layer_outputs: list[Any], layer: str) -> Tensor:
    """Return the only output of the feature layer; ConfigError if it is not (B, F, h, w)."""
    if len(layer_outputs) != 1:
        raise ConfigError(
            f"feature layer {layer!r} ran {len(layer_outputs)} times in one pass: name a layer that"
            " runs once"
        )
    (features,) = layer_outputs
    if not isinstance(features, Tensor) or features.ndim != 4:
        raise ConfigError(
            f"feature layer {layer!r} returns {_shape_or_type(features)}: allowed are features"
            " (B, F, h, w); name a convolution, a normalisation or a block"
        )
    return features


def _logits_of(output: Any) -> Tensor:
    """Return the logits in the output of a module: a tensor, or under `out` or `logits`."""
    if isinstance(output, Mapping):
        output = output.get("out", output.get("logits"))
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 4:
        raise ConfigError(
            f"the module returns {_shape_or_type(logits)}: allowed are logits (B, C, h, w), alone, or"
            " under 'out' or 'logits'"
        )
    return logits


def _shape_or_type(output: Any) -> str:
    return str(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__


def without_weights(module: nn.Module) -> nn.Module:
    """Return a copy whose weights have only shapes, on the meta device.

    Buffers that a state dict leaves out are kept, so the copy and a state dict give the whole module.
    """
    return _copy_with(module, lambda tensor: torch.empty_like(tensor, device="meta"))


def with_empty_weights(module: nn.Module) -> nn.Module:
    """Return a copy on the CPU whose weights are still to be loaded; tied weights stay tied."""
    return _copy_with(module, lambda tensor: torch.empty_like(tensor, device="cpu"))


def _copy_with(module: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return a deep copy in which every tensor of the state dict is replaced."""
    # deepcopy takes an object from the memo instead of copying it.
    memo: dict[int, Any] = {}
    with torch_methods(module, ("state_dict",)):
        tensors = list(module.state_dict(keep_vars=True).values())
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or id(tensor) in memo:
            continue
        replacement = replace(tensor.detach())
        if isinstance(tensor, nn.Parameter):
            replacement = nn.Parameter(replacement, tensor.requires_grad)
        memo[id(tensor)] = replacement
    return copy.deepcopy(module, memo)
