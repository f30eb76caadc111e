"""What is learnt about a user's module before it is used, by passes of small images."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sfss_ray.errors import ConfigError
from sfss_ray.models.card import Card
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.models.user_code.bounded_outputs import are_bounded, lie_in_unit_range
from sfss_ray.models.user_code.carried_module import first_line
from sfss_ray.models.user_code.feature_layers import find_feature_layer
from sfss_ray.models.user_code.layers import TRAIN_METHODS, layers_of, torch_methods, weights_of
from sfss_ray.models.user_code.module_outputs import (
    are_probabilities,
    find_logits,
    require_gradients,
)
from sfss_ray.runtime.out_of_memory import is_out_of_memory

Size = tuple[int, int]
HALVINGS = (1, 2, 4, 8, 16, 32, 64)
_PATCHES = (3, 5, 6, 7, 9, 10, 12, 14, 15, 18, 20, 24, 28, 30, 36, 40, 42, 48, 50, 56, 60)
SIZE_MULTIPLES = tuple(sorted(HALVINGS + _PATCHES))
"""Multiples of which the sides of images may have to be: those of halvings, patches and windows."""
_LARGEST_DIVISOR = 256
"""Largest common divisor of the example's sides that is tried. Larger ones need huge images."""

_RANDOM_IMAGES = 3
"""Random images whose outputs must all lie in [0, 1] before they count as probabilities."""


@contextlib.contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Set eval mode inside the block, and restore the mode of every layer afterwards."""
    modes = [(layer, layer.training) for layer in layers_of(module)]
    try:
        with torch_methods(module, TRAIN_METHODS):
            module.eval()
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def in_full_precision(module: nn.Module) -> nn.Module:
    """Return the module, or a copy in float32 if its weights have another precision."""
    buffers = [buffer for layer in layers_of(module) for buffer in layer._buffers.values()]
    tensors = [*weights_of(module), *(buffer for buffer in buffers if buffer is not None)]
    if all(t.dtype == torch.float32 for t in tensors if t.is_floating_point()):
        return module
    module = copy.deepcopy(module)
    with torch_methods(module):
        return module.float()


class Probe:
    """Passes of small images through a user's module, which stays as it is.

    Args:
        module: In float32.
        card: The preprocessing.
        num_classes: Classes that its outputs are expected to have, or None.
    """

    def __init__(self, module: nn.Module, card: Card, num_classes: int | None):
        self.module, self.num_classes = module, num_classes
        self.preprocessing = Segmenter(nn.Identity(), nn.Identity(), card)
        weights = weights_of(module)
        self.device = weights[0].device if weights else torch.device("cpu")

    def find_sizes(self, example_size: Size) -> tuple[int, Size]:
        """Return the multiple that image sides need, and a size near `example_size` that works.

        A multiple is tried on images whose sides are odd and even numbers of it. Only failing passes
        count: a module may return logits of any size. If the example alone works, the multiple is 1.

        Raises:
            ConfigError: no size works.
        """
        failure = self._failure(example_size)
        multiples = SIZE_MULTIPLES if failure else _likely_multiples(example_size)
        for multiple in multiples:
            height, width = (_odd_multiple(side, multiple) for side in example_size)
            sizes = [(height, width + multiple), (height + 2 * multiple, width)]
            if all(self._failure(size) is None for size in sizes):
                return multiple, sizes[0] if failure else example_size
        if failure is None:
            return 1, example_size
        height, width = example_size
        raise ConfigError(
            f"the module failed on an image of {height}x{width} pixels ({type(failure).__name__}:"
            f" {first_line(failure)}), and on images whose sides are multiples of"
            f" {', '.join(map(str, SIZE_MULTIPLES[1:]))}: it must take (B, 3, H, W) and return logits;"
            " example_size=(height, width) sets another size"
        ) from failure

    def logits(self, size: Size) -> Tensor:
        """Return the logits of a random image, from a pass with gradients.

        Raises:
            ConfigError: they are no logits, see `find_logits`, or probabilities, or gradients cannot
                pass through the module.
        """
        image = self._image(size).requires_grad_()
        try:
            with in_eval_mode(self.module), torch.enable_grad():
                # A copy, because a module may normalise its input in place.
                output = self.module(image.clone())
        except Exception as error:  # a user's module may raise anything
            if is_out_of_memory(error):
                raise
            raise ConfigError(
                f"the module fails in a pass with gradients ({type(error).__name__}:"
                f" {first_line(error)}), so it cannot be trained: make its forward work on tensors that"
                " require gradients"
            ) from error
        logits = find_logits(output, self.num_classes)
        require_gradients(logits)
        logits = logits.detach()
        if are_probabilities(logits):
            raise ConfigError(
                "the module returns probabilities (they add up to 1 at every pixel): return the logits,"
                " which it computes before the softmax"
            )
        if lie_in_unit_range(logits) and self._are_bounded(size):
            raise ConfigError(
                "the module returns probabilities (they lie in [0, 1] at every pixel of several random"
                " images, as after a sigmoid): return the logits, which it computes before the sigmoid"
            )
        return logits

    def find_feature_layer(self, size: Size) -> str:
        """Return the feature layer, see `feature_layers.find_feature_layer`."""
        with in_eval_mode(self.module):
            return find_feature_layer(
                self.module,
                self._image(size),
                lambda output: find_logits(output, self.num_classes),
            )

    def _are_bounded(self, size: Size) -> bool:
        """Whether the module forces its outputs into [0, 1], see `bounded_outputs.are_bounded`."""
        images = [self._image(size, seed) for seed in range(_RANDOM_IMAGES)]
        with in_eval_mode(self.module):
            return are_bounded(
                self.module, images, lambda output: find_logits(output, self.num_classes)
            )

    def _image(self, size: Size, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        image = torch.rand(1, 3, *size, generator=generator)
        return self.preprocessing.prepare(image).to(self.device)

    def _failure(self, size: Size) -> Exception | None:
        """Return the error of a pass of an empty image, or None."""
        image = self.preprocessing.prepare(torch.zeros(1, 3, *size)).to(self.device)
        try:
            with in_eval_mode(self.module), torch.no_grad():
                self.module(image)
        except Exception as error:  # a user's module may raise anything
            return error
        return None


def _likely_multiples(example_size: Size) -> list[int]:
    """Return the multiples that a module may need which takes an example, smallest first.

    The sides of the example are multiples themselves, except where a module that halves its input
    rounds up. Such a module takes some other sizes too.
    """
    common = math.gcd(*example_size)
    divisors = [n for n in range(1, min(common, _LARGEST_DIVISOR) + 1) if common % n == 0]
    return sorted({*divisors, *HALVINGS})


def _odd_multiple(side: int, multiple: int) -> int:
    """Return the next product of `multiple` and an odd number, of 3 or more up to SIZE_MULTIPLES."""
    # Few cells could hide a mismatch. Cells of larger multiples have enough pixels.
    count = max(3 if multiple <= SIZE_MULTIPLES[-1] else 1, -(-side // multiple))
    return multiple * (count + 1 - count % 2)
