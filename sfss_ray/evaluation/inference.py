"""Probabilities of one image: whole or by sliding windows, mirrored and at several zooms if asked."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sfss_ray.config import EvaluationConfig
from sfss_ray.models.segmenter import Segmenter

Size = tuple[int, int]


@torch.no_grad()
def predict_probabilities(
    network: Segmenter, image: np.ndarray, config: EvaluationConfig
) -> np.ndarray:
    """uint8 (H, W, 3) -> float32 (C, H, W) probabilities at the image's own size.

    The network sees at most `max_size` pixels on the longest side, times each of `scales`; its logits
    are scaled to the image's own size before the softmax. With several views (`scales`, `flip`) the
    probabilities are averaged.
    """
    height, width = image.shape[:2]
    base = min(1.0, config.max_size / max(height, width))
    total: Tensor | None = None
    for scale in config.scales:
        pixels = _at_least(_pixels(network, _zoomed(image, base * scale)), 32)
        for mirrored in (False, True)[: 1 + config.flip]:
            view = pixels.flip(3) if mirrored else pixels
            logits = _view_logits(network, view, (height, width), config)
            probabilities = (logits.flip(3) if mirrored else logits).softmax(1)
            total = probabilities if total is None else total + probabilities
    assert total is not None, "the config has one scale or more"
    views = len(config.scales) * (1 + config.flip)
    return (total if views == 1 else total / views)[0].cpu().numpy()


def describe_views(config: EvaluationConfig) -> str:
    """How images are looked at, in words for results."""
    text = "whole image"
    if config.mode == "slide":
        (height, width), (down, right) = config.window, config.stride
        text = f"sliding window {width}x{height}, stride {right}x{down}"
    scales = (
        "single scale"
        if config.scales == (1.0,)
        else f"scales {', '.join(map(str, config.scales))}"
    )
    flip = "flip" if config.flip else "no flip"
    return f"{text}, longest side at most {config.max_size}, {scales}, {flip}"


def _zoomed(image: np.ndarray, zoom: float) -> np.ndarray:
    if zoom == 1:
        return image
    height, width = image.shape[:2]
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    method = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=method)


def _pixels(network: Segmenter, image: np.ndarray) -> Tensor:
    device = next(network.parameters()).device
    return torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() / 255


def _at_least(pixels: Tensor, least: int) -> Tensor:
    """Scale very small images up: networks with stride 32 need one cell at least."""
    height, width = pixels.shape[-2:]
    if min(height, width) >= least:
        return pixels
    size = (max(height, least), max(width, least))
    return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)


def _view_logits(
    network: Segmenter, pixels: Tensor, size: Size, config: EvaluationConfig
) -> Tensor:
    """Logits (1, C, *size) of one view (1, 3, h, w)."""
    if config.mode == "whole":
        return network.logits(pixels, size)
    logits = slide(network, pixels, config.window, config.stride)
    return logits if logits.shape[-2:] == size else network.upsample(logits, size)


def slide(network: Segmenter, pixels: Tensor, window: Size, stride: Size) -> Tensor:
    """Logits (B, C, h, w) of images (B, 3, h, w): the mean over all windows that see a pixel."""
    height, width = pixels.shape[-2:]
    total: Tensor | None = None
    seen = pixels.new_zeros(1, 1, height, width)
    for rows, columns in _windows((height, width), window, stride):
        logits = network.logits(pixels[..., rows, columns])
        if total is None:
            total = logits.new_zeros(len(pixels), logits.shape[1], height, width)
        total[..., rows, columns] += logits
        seen[..., rows, columns] += 1
    assert total is not None, "an image has one window or more"
    return total / seen


def _windows(size: Size, window: Size, stride: Size) -> Iterator[tuple[slice, slice]]:
    """Windows that cover everything; the last ones are moved back so that they end at the border."""
    tops, lefts = (_starts(*numbers) for numbers in zip(size, window, stride, strict=True))
    for top in tops:
        for left in lefts:
            yield slice(top, top + window[0]), slice(left, left + window[1])


def _starts(length: int, window: int, stride: int) -> list[int]:
    last = max(0, length - window)
    return [*range(0, last, stride), last]
