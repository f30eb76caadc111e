"""Label-free evidence about a card: how well images prepared with it suit a network.

- `statistics_distance`: how far the inputs of the first BatchNorm layers are from the statistics that
  these layers gathered in training. It recognises another value range or normalisation, whatever the
  predictions look like. A wrong range often makes them confident and varied.
- `prediction_information`: the information of the predictions about the class. It tells channel orders
  and similar normalisations apart, which the statistics of a new domain cannot do.
- `region_information`: the same over the regions of the images, for networks without BatchNorm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sfss_ray.evaluation.label_free import MaskInformation
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.models.user_code.layers import layers_of

FIRST_LAYERS = 4
"""BatchNorm layers compared, in the order in which a forward pass reaches them."""
_MIN_LAYERS = 2
_TINY = 1e-12


class _EnoughLayers(Exception):
    """Ends a forward pass after the layers that are compared."""


class _Moments:
    """Mean and variance per channel of the input of a layer, over several images."""

    def __init__(self):
        self.count = 0
        self.total: Tensor | float = 0.0
        self.total_of_squares: Tensor | float = 0.0

    def add(self, inputs: Tensor) -> None:
        """Count a batch (B, C, ...)."""
        values = inputs.detach().double().transpose(0, 1).flatten(1)
        self.count += values.shape[1]
        self.total = self.total + values.sum(1)
        self.total_of_squares = self.total_of_squares + values.square().sum(1)

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """Return (C,) mean and standard deviation."""
        mean = torch.as_tensor(self.total) / self.count
        variance = torch.as_tensor(self.total_of_squares) / self.count - mean.square()
        return mean, variance.clamp_min(_TINY).sqrt()


@torch.no_grad()
def statistics_distance(network: Segmenter, images: Sequence[Tensor]) -> float:
    """Return the distance between the inputs of BatchNorm layers and their training statistics.

    With m, s the mean and standard deviation of a channel over the images, and M, S those of the layer:

        distance = mean over layers (median |log(s / S)| + median 2 |m - M| / (s + S))

    The medians are over channels. It is near 0.1 on images like those of the training, up to about 1 on
    those of another domain, and above 2 for a wrong value range.

    Args:
        network: In eval mode.
        images: Batches (B, 3, H, W) in [0, 1].

    Returns:
        The distance, or NaN for a network with fewer than two such layers, or whose statistics were
        never gathered.
    """
    layers = [layer for layer in layers_of(network) if _statistics(layer) is not None]
    moments: dict[nn.Module, _Moments] = {}
    reached: list[nn.Module] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if layer in reached or not inputs:
            return
        reached.append(layer)
        moments.setdefault(layer, _Moments()).add(inputs[0])
        if len(reached) == FIRST_LAYERS:
            raise _EnoughLayers

    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    try:
        for batch in images:
            reached.clear()
            with contextlib.suppress(_EnoughLayers):
                network(batch)
    finally:
        for hook in hooks:
            hook.remove()
    distances = [_layer_distance(layer, counted) for layer, counted in moments.items()]
    if len(distances) < _MIN_LAYERS or not any(_was_trained(layer) for layer in moments):
        return float("nan")
    return float(np.mean(distances))


def _statistics(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return running mean and variance of BatchNorm, or of a frozen layer that replaces it."""
    mean, variance = (getattr(layer, name, None) for name in ("running_mean", "running_var"))
    if isinstance(mean, Tensor) and isinstance(variance, Tensor):
        return mean, variance
    return None


def _was_trained(layer: nn.Module) -> bool:
    """Whether the statistics differ from those that a new layer has, 0 and 1."""
    mean, variance = _statistics(layer) or (torch.zeros(1), torch.ones(1))
    return bool((mean != 0).any() or (variance != 1).any())


def _layer_distance(layer: nn.Module, moments: _Moments) -> float:
    statistics = _statistics(layer)
    assert statistics is not None, "only layers with statistics are hooked"
    expected_mean = statistics[0].double()
    expected_std = statistics[1].double().clamp_min(_TINY).sqrt()
    mean, std = moments.mean_and_std()
    scale = (std / expected_std).log().abs().median()
    shift = (2 * (mean - expected_mean).abs() / (std + expected_std)).median()
    return float(scale + shift)


@torch.no_grad()
def prediction_information(network: Segmenter, images: Sequence[Tensor]) -> np.ndarray:
    """Return the mutual information between pixel and class, of all images and of each image.

    I(pixel; class) = H(mean probabilities) - mean H(probabilities), in nats: it is high where
    predictions are confident and of many classes (Krause et al. 2010, "Discriminative clustering by
    regularized information maximization").

    Args:
        network: In eval mode.
        images: Batches (1, 3, H, W) in [0, 1].

    Returns:
        (1 + images,) the value of all images, then that of each.
    """
    means, entropies = [], []
    for image in images:
        probabilities = network(image).logits.double().softmax(1)
        means.append(probabilities.mean((0, 2, 3)))
        entropies.append(_entropy(probabilities).mean())
    each = [
        _entropy(mean[None])[0] - entropy for mean, entropy in zip(means, entropies, strict=True)
    ]
    overall = _entropy(torch.stack(means).mean(0, keepdim=True))[0] - torch.stack(entropies).mean()
    return torch.stack([overall, *each]).cpu().numpy()


def _entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy along the second axis, in nats."""
    return torch.special.entr(probabilities).sum(1)


@torch.no_grad()
def region_information(
    network: Segmenter, images: Sequence[Tensor], regions: Sequence[np.ndarray]
) -> np.ndarray:
    """Return the mutual information between region and predicted class, see `MaskInformation`.

    Args:
        network: In eval mode.
        images: Batches (1, 3, H, W) in [0, 1].
        regions: Region ids (H, W) from 1 of each image.

    Returns:
        (1 + images,) the value of all images, then that of each.
    """
    overall: MaskInformation | None = None
    each = []
    for image, region_ids in zip(images, regions, strict=True):
        logits = network.logits(image)[0]
        overall = overall or MaskInformation(len(logits))
        single = MaskInformation(len(logits))
        for score in (overall, single):
            score.add(logits.argmax(0).cpu().numpy(), region_ids)
        each.append(single.value())
    return np.array([overall.value() if overall else float("nan"), *each])


def find_regions(image: np.ndarray) -> np.ndarray:
    """Return region ids (H, W) from 1, of Felzenszwalb's graph segmentation of an RGB image."""
    from skimage.segmentation import felzenszwalb

    return felzenszwalb(image, scale=100, sigma=0.8, min_size=60) + 1
