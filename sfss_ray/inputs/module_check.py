"""Passes of the network at the sizes of a run, before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfss_ray.config import Config, EvaluationConfig
from sfss_ray.config.train import STATISTICS_BATCH
from sfss_ray.config.worker_shares import share_sizes, share_unit
from sfss_ray.data.augment import fit_crop
from sfss_ray.errors import ConfigError
from sfss_ray.models.source import Source

if TYPE_CHECKING:
    from torch import nn

Size = tuple[int, int]


def needs_check(source: Source, config: Config, device: str, num_images: int) -> bool:
    """Whether `check_module` has anything to do.

    That is the case for a user's own module, and where BatchNorm sees a single crop or image at a time.
    """
    return (
        source.carried is not None
        or _fewest_crops(config, device) == 1
        or _fewest_whole_images(config, num_images) == 1
    )


def check_module(
    source: Source, image_size: Size, config: Config, device: str, num_images: int
) -> str:
    """Pass empty images through the network, and return what it takes.

    A user's own module is tried at the sizes of evaluation and training. Networks of this package take
    every size. They are tried only where BatchNorm may see a single crop or image at a time.

    Args:
        source: The source model.
        image_size: (height, width) of a target image.
        config: `evaluation`, `train` and `compute` are used.
        device: Device of the workers, 'cpu' or 'cuda'.
        num_images: Target images to train on.

    Raises:
        ConfigError: the module fails at one of the sizes, or BatchNorm has no variance.
    """
    if not needs_check(source, config, device, num_images):
        return "takes every size"
    network = source.load().network
    whole_size = evaluated_size(image_size, config.evaluation)
    crop_size = fit_crop(config.train.augment, source.size_multiple).chosen_crop_size
    # A user's own module is tried at both sizes, whatever BatchNorm sees.
    whole_image_layers = single_value_layers(network, whole_size)
    crop_layers = single_value_layers(network, crop_size)
    if whole_image_layers and _fewest_whole_images(config, num_images) == 1:
        raise ConfigError(
            f"BatchNorm {whole_image_layers[0]!r} of the network sees a single value per channel of an"
            " image, so the statistics of one image have no variance: give at least 2 target images to"
            " train on and train.statistics_images of 2 or more (0 keeps the source's statistics), or"
            " set train.batch_norm to frozen"
        )
    if crop_layers and _fewest_crops(config, device) == 1:
        raise ConfigError(
            f"BatchNorm {crop_layers[0]!r} of the network sees a single value per channel of a crop of"
            f" {crop_size[0]}x{crop_size[1]}, so a batch of one crop has no variance: give every worker"
            " at least two crops at a time (raise train.batch_size, lower train.accumulate or"
            " compute.num_workers), or set train.batch_norm to frozen"
        )
    if source.carried is None:
        return "takes the smallest batches of this run"
    return f"takes images of {image_size[0]}x{image_size[1]}"


def evaluated_size(image_size: Size, config: EvaluationConfig) -> Size:
    """Return the (height, width) at which the network first sees an image of this size."""
    if config.mode == "slide":
        return config.window
    scale = min(1.0, config.max_size / max(image_size)) * config.scales[0]
    return round(image_size[0] * scale), round(image_size[1] * scale)


def single_value_layers(network: nn.Module, size: Size) -> list[str]:
    """Return the names of BatchNorm layers that see one value per channel of an image.

    Args:
        network: In eval mode.
        size: (height, width) of the image.

    Raises:
        ConfigError: the module fails at this size.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    from sfss_ray.models.user_code.layers import named_layers

    names: list[str] = []

    def hook_for(name: str):
        def record(_layer: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            if arguments[0][0, 0].numel() == 1:
                names.append(name.removeprefix("body."))

        return record

    hooks = [
        layer.register_forward_pre_hook(hook_for(name))
        for name, layer in named_layers(network)
        if isinstance(layer, _BatchNorm)
    ]
    try:
        with torch.no_grad():
            network.logits(torch.zeros(1, 3, *size))  # pyright: ignore[reportCallIssue]
    finally:
        for hook in hooks:
            hook.remove()
    return names


def _fewest_crops(config: Config, device: str) -> int:
    """Return the crops of the smallest batch that BatchNorm takes statistics of, 0 for none."""
    train = config.train
    if train.batch_norm != "adapt":
        return 0
    crops = train.batch_size // train.accumulate
    # On GPUs SyncBatchNorm takes the statistics of all workers' crops.
    workers = config.compute.workers.largest if device == "cpu" else 1
    return min(share_sizes(crops, workers, share_unit(train)))


def _fewest_whole_images(config: Config, num_images: int) -> int:
    """Return the whole images of the smallest batch in the estimate before step 1, 0 for none."""
    train = config.train
    if train.batch_norm == "frozen":
        return 0
    return min(STATISTICS_BATCH, num_images, train.statistics_images)
