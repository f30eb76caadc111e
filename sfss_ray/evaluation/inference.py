"""Class probabilities of one image: whole or by sliding windows, with optional flip and scales."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sfss_ray.config import EvaluationConfig
from sfss_ray.data.folders import ImageFile, LabelledImage
from sfss_ray.errors import DataError
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.runtime.out_of_memory import enough_memory

Size = tuple[int, int]
_MIN_PIXELS = 32


def image_memory(image: np.ndarray) -> AbstractContextManager[None]:
    """Return a block in which a lack of memory becomes a DataError with the size of the image."""
    height, width = image.shape[:2]
    return enough_memory(f"{width}x{height} pixels", "shrink it, or predict it on another machine")


def predict_file_probabilities(
    network: Segmenter,
    file: ImageFile | LabelledImage,
    image: np.ndarray,
    config: EvaluationConfig,
) -> np.ndarray:
    """Predict an image, whose file an error names; see `predict_probabilities`."""
    try:
        return predict_probabilities(network, image, config)
    except DataError as error:
        raise DataError(f"image {str(file.path)!r}: {error}") from error


def predict_probabilities(
    network: Segmenter, image: np.ndarray, config: EvaluationConfig
) -> np.ndarray:
    """Predict the class probabilities of an image at its own size.

    The network gets the image with at most `max_size` pixels on the longest side, times each of
    `scales`. Its logits are resized to the image's own size before the softmax. With several views
    (`scales`, `flip`) the probabilities are averaged.

    Args:
        network: In eval mode; the image is sent to its device.
        image: (H, W, 3) uint8 RGB.
        config: Views and windows.

    Returns:
        (C, H, W) float32.

    Raises:
        DataError: the image is too large for the memory.
    """
    with image_memory(image):
        return _average_views(network, image, config)


@torch.no_grad()
def _average_views(network: Segmenter, image: np.ndarray, config: EvaluationConfig) -> np.ndarray:
    height, width = image.shape[:2]
    total: Tensor | None = None
    for scale in config.scales:
        pixels = image_pixels(network, image, config, scale)
        for flipped in (False, True)[: 1 + config.flip]:
            view = pixels.flip(3) if flipped else pixels
            # Outputs are grouped at the size of the image, so that their probabilities add up.
            logits = network.group(_view_logits(network, view, (height, width), config))
            probabilities = (logits.flip(3) if flipped else logits).softmax(1)
            total = probabilities if total is None else total + probabilities
    assert total is not None, "the config has one scale or more"
    num_views = len(config.scales) * (1 + config.flip)
    return (total if num_views == 1 else total / num_views)[0].cpu().numpy()


def image_pixels(
    network: Segmenter, image: np.ndarray, config: EvaluationConfig, scale: float = 1.0
) -> Tensor:
    """Return an image as evaluation shows it to a network: (1, 3, h, w) in 0..1, on its device.

    Args:
        network: Only its device is used.
        image: (H, W, 3) uint8 RGB.
        config: Its `max_size` limits the longest side.
        scale: Zoom of the view, on top of that limit.
    """
    base_scale = min(1.0, config.max_size / max(image.shape[:2]))
    return _enlarge_small(_to_pixels(network, _rescale(image, base_scale * scale)))


def describe_views(config: EvaluationConfig) -> str:
    """Describe how images are predicted, for results."""
    mode = "whole image"
    if config.mode == "slide":
        (height, width), (down, right) = config.window, config.stride
        mode = f"sliding window {width}x{height}, stride {right}x{down}"
    scales = (
        "single scale"
        if config.scales == (1.0,)
        else f"scales {', '.join(map(str, config.scales))}"
    )
    flip = "flip" if config.flip else "no flip"
    return f"{mode}, longest side at most {config.max_size}, {scales}, {flip}"


def _rescale(image: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return image
    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=method)


def _to_pixels(network: Segmenter, image: np.ndarray) -> Tensor:
    """Return (1, 3, H, W) in 0..1 on the network's device."""
    device = next(network.parameters()).device
    return torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() / 255


def _enlarge_small(pixels: Tensor) -> Tensor:
    """Scale very small images up, because a network of stride 32 needs at least one cell."""
    height, width = pixels.shape[-2:]
    if min(height, width) >= _MIN_PIXELS:
        return pixels
    size = (max(height, _MIN_PIXELS), max(width, _MIN_PIXELS))
    return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)


def _view_logits(
    network: Segmenter, pixels: Tensor, size: Size, config: EvaluationConfig
) -> Tensor:
    """Return the logits of all outputs (1, O, *size) of one view (1, 3, h, w)."""
    if config.mode == "whole":
        return network.output_logits(pixels, size)
    logits = slide(network, pixels, config.window, config.stride)
    return logits if logits.shape[-2:] == size else network.upsample(logits, size)


def slide(network: Segmenter, pixels: Tensor, window: Size, stride: Size) -> Tensor:
    """Average the outputs' logits of all windows that cover a pixel.

    Args:
        network: Called on one window at a time.
        pixels: (B, 3, h, w) in 0..1.
        window: (height, width) of a window.
        stride: (down, right) step between windows.

    Returns:
        Logits of all outputs (B, O, h, w).
    """
    height, width = pixels.shape[-2:]
    total: Tensor | None = None
    coverage = pixels.new_zeros(1, 1, height, width)
    for rows, columns in _windows((height, width), window, stride):
        logits = network.output_logits(pixels[..., rows, columns])
        if total is None:
            total = logits.new_zeros(len(pixels), logits.shape[1], height, width)
        total[..., rows, columns] += logits
        coverage[..., rows, columns] += 1
    assert total is not None, "an image has one window or more"
    return total / coverage


def _windows(size: Size, window: Size, stride: Size) -> Iterator[tuple[slice, slice]]:
    """Yield windows that cover the image; the last ones are shifted to end at the border."""
    rows, columns = (_starts(*lengths) for lengths in zip(size, window, stride, strict=True))
    for row in rows:
        for column in columns:
            yield slice(row, row + window[0]), slice(column, column + window[1])


def _starts(length: int, window: int, stride: int) -> list[int]:
    last = max(0, length - window)
    return [*range(0, last, stride), last]
