"""A user's own module as a segmenter: it returns logits, and one of its layers provides the features."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfss_ray.errors import ConfigError, SfssError
from sfss_ray.models.card import Card
from sfss_ray.models.segmenter import Segmenter, SegmenterOutput
from sfss_ray.models.user_code.carried_module import first_line
from sfss_ray.models.user_code.feature_layers import (
    INPUT,
    check_feature_layer,
    recorded_features,
    single_features,
)
from sfss_ray.models.user_code.layers import TRAIN_METHODS, torch_methods
from sfss_ray.models.user_code.module_outputs import find_logits, require_gradients
from sfss_ray.models.user_code.probing import in_eval_mode
from sfss_ray.runtime.out_of_memory import is_out_of_memory
from sfss_ray.storage.places import Place

CUSTOM = "custom"
"""The network's name in model files, which hold its weights but not its code."""


@dataclass(frozen=True)
class Wrapping:
    """How a module is used; model files store it beside the weights."""

    feature_layer: str
    """Name of the layer that returns the features. With `:input` at its end, the layer reads them."""
    example_size: tuple[int, int] = (128, 128)
    """(height, width) of an image that the module takes."""
    size_multiple: int = 1
    """Sides of its input images must be multiples of this number of pixels."""
    title: str = ""
    """The module's name for reports."""


class WrappingOptions(NamedTuple):
    """What a caller says about the wrapping of a module, see `wrap_model`; None for what is open."""

    name: str | None = None
    feature_layer: str | None = None
    example_size: tuple[int, int] | None = None

    def refuse(self, path: Place | str, reason: str) -> None:
        """Raise ConfigError if any is set; `path` and `reason` are for its message."""
        names = [name for name, value in self._asdict().items() if value is not None]
        if names:
            raise ConfigError(
                f"source model {str(path)!r} was given with {', '.join(names)}: {reason}"
            )


class WrappedSegmenter(Segmenter):
    """A user's module as a segmenter, with what a layer returns or reads as features.

    Their grids may differ: labels are learnt at the resolution of the logits, and the contrast compares
    features.

    Args:
        module: Maps prepared images (B, 3, H, W) to logits (B, C, h, w), see `wrap_model`.
        card: The preprocessing.
        wrapping: The feature layer, the sizes and the name.
        num_classes: Classes that the logits are recognised by among several outputs, or None.

    Raises:
        ConfigError: there is no such layer, or it or the module returns something else than expected.
    """

    def __init__(
        self, module: nn.Module, card: Card, wrapping: Wrapping, num_classes: int | None = None
    ):
        super().__init__(module, nn.Identity())
        self.use_card(card)
        check_feature_layer(module, wrapping.feature_layer)
        self.wrapping = wrapping
        self.size_multiple = wrapping.size_multiple
        self.num_outputs = num_classes
        self._measure_example()

    @property
    def feature_layer(self) -> str:
        """The name of the feature layer, see `Wrapping`."""
        return self.wrapping.feature_layer

    @property
    def example_size(self) -> tuple[int, int]:
        """(height, width) of an image that the module takes."""
        return self.wrapping.example_size

    @property
    def feature_width(self) -> int:
        """F, the number of channels of the features."""
        return self._feature_width

    def describe(self) -> list[str]:
        """Return lines for people about the features and the sizes."""
        layer, multiple = self.feature_layer, self.size_multiple
        source = (
            f"what {layer.removesuffix(INPUT)!r} reads" if layer.endswith(INPUT) else repr(layer)
        )
        features, logits = self._strides
        lines = [
            f"features: {source} ({self._feature_width} channels, stride {features:g}); the logits"
            f" have stride {logits:g}"
        ]
        if multiple > 1:
            lines.append(
                f"sizes: the module takes multiples of {multiple} pixels; other images are padded"
            )
        return lines

    def output_grid(self, images: Tensor) -> SegmenterOutput:
        """Return features and logits, each on its own grid, for images (B, 3, H, W) in [0, 1]."""
        return SegmenterOutput(*self._run_body(images))

    def grid_logits(self, images: Tensor) -> Tensor:
        """Return the module's own logits for images whose sides are multiples of `size_multiple`.

        Raises:
            ConfigError: the module fails.
        """
        if torch.compiler.is_compiling():
            return self._run_body(images)[1]
        try:
            return self._run_body(images)[1]
        except Exception as error:  # a user's module may raise anything
            if isinstance(error, SfssError) or is_out_of_memory(error):
                raise
            height, width = images.shape[-2:]
            raise ConfigError(
                f"the module fails on images of {height}x{width} pixels ({type(error).__name__}:"
                f" {first_line(error)}): it took {self.example_size[0]}x{self.example_size[1]}; a module"
                " of one size only needs evaluation.mode slide, with evaluation.window and"
                " train.augment.crop_size of that size"
            ) from error

    def freeze_idle_weights(self) -> None:
        """Stop training the weights that influence neither logits nor features.

        Data-parallel training would wait forever for their gradients.

        Raises:
            ConfigError: the module computes its logits without gradients.
        """
        weights = [p for p in self.parameters() if p.requires_grad]
        if not weights:
            return
        self.eval()  # a pass in training mode would move BatchNorm's statistics
        with torch.enable_grad():
            # All weights that lead to the logits may be frozen.
            features, logits = self._run_body(self._example_image().requires_grad_())
            require_gradients(logits)
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
        """Return the features and the module's own logits."""
        with recorded_features(self.body, self.feature_layer) as records:
            output = self.body(self.prepare(images))
        return single_features(records, self.feature_layer), find_logits(output, self.num_outputs)

    def _example_image(self) -> Tensor:
        return self.mean.new_zeros(1, 3, *self.example_size)

    @torch.no_grad()
    def _measure_example(self) -> None:
        """Learn the numbers of channels and the strides from a pass of an empty image."""
        parameter = next(self.parameters(), None)
        if parameter is not None:
            self.to(parameter.device)
        with in_eval_mode(self):
            features, logits = self._run_body(self._example_image())
        self._feature_width, self.num_outputs = features.shape[1], logits.shape[1]
        height = self.example_size[0]
        self._strides = (height / features.shape[-2], height / logits.shape[-2])


def wrapped_network(module: nn.Module) -> WrappedSegmenter | None:
    """Return the segmenter of a model that `wrap_model` made, or None for any other module."""
    network = vars(module).get("_modules", {}).get("network", module)
    return network if isinstance(network, WrappedSegmenter) else None


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the user's module inside a model that `wrap_model` made, or any other module itself."""
    network = wrapped_network(module)
    return module if network is None else network.body


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
