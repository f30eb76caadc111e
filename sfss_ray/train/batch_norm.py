"""BatchNorm during training: which statistics a network uses, and where they come from."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from sfss_ray.errors import TrainingError
from sfss_ray.method.collective import average_buffers
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.storage.files import read_torch
from sfss_ray.storage.places import Place

BatchNorm = nn.modules.batchnorm._BatchNorm
NORM_LAYERS = (BatchNorm, nn.LayerNorm, nn.GroupNorm)


def set_batch_norm(module: nn.Module, mode: str) -> None:
    """Put a module into training mode. Unless `mode` is "adapt", BatchNorm keeps its statistics."""
    module.train()
    if mode != "adapt":
        for layer in module.modules():
            if isinstance(layer, BatchNorm):
                layer.eval()


class StatisticsMixture:
    """BatchNorm statistics of source and target, of which a network can use any mixture.

    Args:
        layers: The BatchNorm layers of the network.
        source: Statistics of each layer before the estimate.
        target: Statistics of each layer on target images.
    """

    def __init__(
        self, layers: list[BatchNorm], source: list[list[Tensor]], target: list[list[Tensor]]
    ):
        self._layers, self._source, self._target = layers, source, target

    @torch.no_grad()
    def use(self, target_share: float) -> None:
        """Set the network's statistics to (1 - target_share) * source + target_share * target."""
        for layer, old, new in zip(self._layers, self._source, self._target, strict=True):
            for tensor, source, target in zip(_statistics(layer), old, new, strict=True):
                tensor.copy_(source.lerp(target, target_share))


@torch.no_grad()
def estimate_statistics(
    network: Segmenter, batches: Iterable[Tensor], target_share: float = 1.0
) -> StatisticsMixture | None:
    """Replace BatchNorm statistics by their mean over batches of target images.

    Without batches, or in a network without BatchNorm, nothing changes.

    Args:
        network: In training mode.
        batches: Images (B, 3, H, W), float in [0, 1].
        target_share: Weight of the new statistics, 0 to 1. The old ones keep the rest.

    Returns:
        Both statistics, to use other shares; None where nothing changed.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, BatchNorm)]
    layers = [layer for layer in layers if _statistics(layer)]
    momenta = [layer.momentum for layer in layers]
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None or not layers:
        return None
    source = [[tensor.clone() for tensor in _statistics(layer)] for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # None makes PyTorch keep a cumulative mean
    with explain_single_values():
        network(first)
        for images in remaining:
            network(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    average_buffers(network)
    target = [[tensor.clone() for tensor in _statistics(layer)] for layer in layers]
    mixture = StatisticsMixture(layers, source, target)
    mixture.use(target_share)
    return mixture


def read_statistics(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy on the CPU of all BatchNorm statistics, by their names in the state dict."""
    return {
        f"{layer_name}.{name}": tensor.detach().cpu().clone()
        for layer_name, layer in network.named_modules()
        if isinstance(layer, BatchNorm)
        for name, tensor in layer.named_buffers(recurse=False)
    }


def with_statistics(network: Segmenter, path: Place) -> Segmenter:
    """Return a copy of a network with stored statistics, or the network itself if it has them already.

    Args:
        network: A network of the layers that the statistics were read from.
        path: File of `read_statistics`.
    """
    statistics = read_torch(path)
    present = read_statistics(network)
    if all(torch.equal(present[name], tensor) for name, tensor in statistics.items()):
        return network
    changed = copy.deepcopy(network)
    changed.load_state_dict(statistics, strict=False)
    return changed


def _statistics(layer: BatchNorm) -> list[Tensor]:
    return [s for s in (layer.running_mean, layer.running_var) if s is not None]


@contextlib.contextmanager
def explain_single_values() -> Iterator[None]:
    """Explain PyTorch's error about BatchNorm layers that see a single value per channel.

    Networks that normalise a pooled vector (DeepLabV3) raise it for batches of one crop.

    Raises:
        TrainingError: instead of PyTorch's ValueError, with the options that help.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            "this network normalises a pooled vector, and a batch of one crop has a single value per"
            " channel: give every worker at least two crops at a time (raise batch_size, lower"
            " num_workers or accumulate), or set batch_norm to frozen"
        ) from error
