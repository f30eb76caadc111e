"""Networks of the user's own: any module that returns logits, looked into at one named layer."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfss_ray.errors import ConfigError
from sfss_ray.models.card import Card
from sfss_ray.models.segmenter import Segmenter, SegmenterOutput
from sfss_ray.models.user_code.layers import (
    OF_TRAINING,
    layer_named,
    layers_of,
    named_layers,
    torch_methods,
)

CUSTOM = "custom"
"""The network's name in model files: its code is the user's, only its weights are in the file."""


class WrappedSegmenter(Segmenter):
    """A user's module as a segmenter.

    Features are what the named layer returns. Training compares logits and features cell by cell:
    where their grids differ, logits are resized to the grid of the features (by averages when they
    are finer, bilinearly when they are coarser). `logits`, and with it evaluation and prediction,
    takes the module's logits on the grid they were made on.
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
        """F, the channels of the named layer."""
        return self._feature_width

    def forward(self, images: Tensor) -> SegmenterOutput:
        """Features of the named layer and logits on their grid, for images (B, 3, H, W) in [0, 1]."""
        features, logits = self._look(images)
        return SegmenterOutput(features, _on_grid(logits, features.shape[-2:], self.align_corners))

    def logits(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """The module's own logits at `size`, by default that of the images."""
        return self.upsample(self._look(images)[1], size or images.shape[-2:])

    def freeze_idle_weights(self) -> None:
        """Weights that neither logits nor features depend on take no part in training.

        Data-parallel training waits for a gradient of every weight that asks for one.
        """
        weights = [p for p in self.parameters() if p.requires_grad]
        self.eval()  # a pass in training mode would move BatchNorm's statistics
        with torch.enable_grad():
            features, logits = self._look(self._example())
            total = features.float().sum() + logits.float().sum()
            gradients = torch.autograd.grad(total, weights, allow_unused=True)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.requires_grad_(gradient is not None)
        # Modules that keep tensors in attributes keep none of that pass: it could not be copied.
        with torch.no_grad():
            self._look(self._example())

    # Layers of the user's may have attributes such as `children` or `modules`, which hide the methods
    # that torch calls on its way through a network.

    def train(self, mode: bool = True) -> WrappedSegmenter:
        """Set the training mode, as `nn.Module.train` does."""
        with torch_methods(self, OF_TRAINING):
            super().train(mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """All weights and buffers, as `nn.Module.state_dict` returns them."""
        with torch_methods(self, ("state_dict",)):
            return super().state_dict(*args, **kwargs)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """(name, layer) of every layer, as `nn.Module.named_modules` yields them."""
        with torch_methods(self, ("named_modules",)):
            layers = list(super().named_modules(*args, **kwargs))
        return iter(layers)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> WrappedSegmenter:
        with torch_methods(self, ("children", "named_children")):
            super()._apply(fn, recurse)
        return self

    def _look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Any] = []
        layer = layer_named(self.body, self.feature_layer)
        # Registered for this pass alone, so that the module stays the user's own and can be copied.
        hook = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            output = self.body(self.prepare(images))
        finally:
            hook.remove()
        return _features_of(seen, self.feature_layer), _logits_of(output)

    def _example(self) -> Tensor:
        return self.mean.new_zeros(1, 3, *self.example_size)

    @torch.no_grad()
    def _probe(self) -> tuple[int, int]:
        """(feature width, number of outputs), from a look at an empty image."""
        modes = [(layer, layer.training) for layer in layers_of(self)]
        try:
            features, logits = self._look_at_example()
        finally:
            for layer, training in modes:
                layer.training = training
        return features.shape[1], logits.shape[1]

    def _look_at_example(self) -> tuple[Tensor, Tensor]:
        self.eval()
        first = next(self.parameters(), None)
        if first is not None:
            self.to(first.device)
        try:
            return self._look(self._example())
        except ConfigError:
            raise
        except Exception as error:  # a user's module may raise anything
            height, width = self.example_size
            raise ConfigError(
                f"the module failed on an image of {height}x{width} pixels ({type(error).__name__}:"
                f" {str(error).splitlines()[0] if str(error) else 'no message'}): it must take"
                " (B, 3, H, W) and return logits; example_size=(height, width) sets another size"
            ) from error


def _check_layer(module: nn.Module, name: str) -> None:
    known = [known for known, _ in named_layers(module) if known]
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.4) or known[-5:]
    raise ConfigError(
        f"the module has no layer {name!r}: close names are {', '.join(close)}; every name is in"
        " module.named_modules()"
    )


def _features_of(seen: list[Any], layer: str) -> Tensor:
    if len(seen) != 1:
        raise ConfigError(
            f"feature layer {layer!r} ran {len(seen)} times in one pass: name a layer that runs once"
        )
    (features,) = seen
    if not isinstance(features, Tensor) or features.ndim != 4:
        kind = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ConfigError(
            f"feature layer {layer!r} returns {kind}: allowed are features (B, F, h, w); name a"
            " convolution, a normalisation or a block"
        )
    return features


def _logits_of(output: Any) -> Tensor:
    """The logits in what a module returns: a tensor, or under `out` or `logits`."""
    if isinstance(output, Mapping):
        output = output.get("out", output.get("logits"))
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 4:
        kind = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"the module returns {kind}: allowed are logits (B, C, h, w), alone, or under 'out' or"
            " 'logits'"
        )
    return logits


def _on_grid(logits: Tensor, grid: torch.Size, align_corners: bool) -> Tensor:
    if logits.shape[-2:] == grid:
        return logits
    size = (int(grid[0]), int(grid[1]))
    if logits.shape[-2] >= size[0] and logits.shape[-1] >= size[1]:
        return F.interpolate(logits, size=size, mode="area")
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)


def without_weights(module: nn.Module) -> nn.Module:
    """A copy whose weights are shapes alone (on the meta device): what a model file does not hold.

    Buffers that a state dict leaves out stay, so that the copy and a state dict make the module whole.
    """
    return _copy(module, lambda tensor: torch.empty_like(tensor, device="meta"))


def with_room_for_weights(module: nn.Module) -> nn.Module:
    """A copy on the CPU whose weights are still to be loaded; tied weights stay tied."""
    return _copy(module, lambda tensor: torch.empty_like(tensor, device="cpu"))


def _copy(module: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    memo: dict[int, Any] = {}
    with torch_methods(module, ("state_dict",)):
        tensors = list(module.state_dict(keep_vars=True).values())
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or id(tensor) in memo:
            continue
        new = make(tensor.detach())
        is_weight = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if is_weight else new
    return copy.deepcopy(module, memo)
