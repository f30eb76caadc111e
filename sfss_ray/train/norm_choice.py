"""The choice of BatchNorm statistics before step 1: the source's, the target's, or a mixture.

The target's statistics help where its images look different, and harm where the source model already
suits them. Which of them holds is not visible in the images alone. So mixtures of both are compared by
the network's consistency over views of target images, without labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sfss_ray.config import Config, EvaluationConfig
from sfss_ray.config.train import STATISTICS_BATCH
from sfss_ray.data.folders import ImageFile, evenly_spread
from sfss_ray.evaluation.inference import image_pixels
from sfss_ray.evaluation.view_consistency import ConsistencyProbe, ViewConsistency
from sfss_ray.method.collective import average_buffers
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.train.batch_norm import estimate_statistics
from sfss_ray.train.norm_record import CONSISTENCY, STATISTICS_SHARE

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the target's statistics that are scored; 0 keeps those of the source model."""
NUM_IMAGES = 16
"""Target images on which they are scored."""
MIN_IMAGES = 3
"""With fewer images the scores prove nothing, and the source's statistics are kept."""
_GRID = np.linspace(0, 1, 21)
"""Shares among which the peak of the fitted curve is looked for."""


@dataclass(frozen=True)
class NormChoice:
    """The chosen share of the target's statistics, and the consistency of every share."""

    share: float
    consistency: Mapping[float, float]

    def as_record(self) -> dict[str, Any]:
        """Return the entries of the record that is logged before step 1."""
        return {
            STATISTICS_SHARE: self.share,
            CONSISTENCY: {f"{share:.2f}": score for share, score in self.consistency.items()},
        }


def choose_share(score_share: Callable[[float], ViewConsistency]) -> NormChoice:
    """Choose the share at which the fitted consistency is highest.

    Rare classes make the score of one share noisy, while the true curve is smooth with one peak. So a
    quadratic function of the share is fitted to all scores by least squares.

    Args:
        score_share: Share -> consistency of the network with it, on the same images for all shares.
    """
    scores = {share: score_share(share) for share in SHARES}
    values = {share: score.value() for share, score in scores.items()}
    if scores[0.0].num_images < MIN_IMAGES:
        return NormChoice(0.0, values)
    curve = np.polynomial.Polynomial.fit(SHARES, list(values.values()), deg=2)
    # Rounded, so that the last digits of a sum do not decide between equal shares.
    return NormChoice(float(_GRID[np.argmax(curve(_GRID).round(6))]), values)


@dataclass(frozen=True)
class StatisticsImages:
    """The target images that statistics are estimated and compared on."""

    training: Sequence[ImageFile]
    held_out: Sequence[ImageFile] = ()
    """Images to compare on. Where they are too few, training images take their place."""

    @property
    def compared(self) -> list[ImageFile]:
        """The images to compare on, evenly spread."""
        images = self.held_out if len(self.held_out) >= MIN_IMAGES else self.training
        return evenly_spread(list(images), NUM_IMAGES)


def set_initial_statistics(
    network: Segmenter, images: StatisticsImages, config: Config
) -> NormChoice | None:
    """Give a network the BatchNorm statistics that a training starts from.

    Args:
        network: The source model's. It may be left in training or in eval mode.
        images: The target images.
        config: Its `train` says which statistics, and `evaluation` how the network sees an image.

    Returns:
        The choice that `batch_norm auto` made; None in other modes, and for a network without BatchNorm.
    """
    train = config.train
    if train.batch_norm == "frozen":
        return None
    files = evenly_spread(list(images.training), train.statistics_images)
    batches = whole_image_batches(network, files, config.evaluation)
    mixture = estimate_statistics(network.train(), batches, train.statistics_share)
    if mixture is None or train.batch_norm != "auto":
        return None

    pixels = tuple(file.read(max_pixels=None) for file in images.compared)
    probe = ConsistencyProbe(pixels, config.evaluation)
    network.eval()

    def score_share(share: float) -> ViewConsistency:
        mixture.use(share)
        return probe.score(network)

    choice = choose_share(score_share)
    mixture.use(choice.share)
    average_buffers(network)  # workers whose rounding differs may have chosen differently
    return choice


def whole_image_batches(
    network: Segmenter, files: Sequence[ImageFile], config: EvaluationConfig
) -> Iterator[Tensor]:
    """Yield batches (B, 3, H, W) of whole images, as evaluation shows them to the network.

    Statistics of crops would be biased: a crop has another mixture of classes than the image, and
    networks that pool over the whole image see less of it. Images of another size than the first are
    resized to it.
    """
    size: tuple[int, int] | None = None
    batch: list[Tensor] = []
    for number, file in enumerate(files):
        pixels = image_pixels(network, file.read(max_pixels=None), config)
        size = size or (pixels.shape[-2], pixels.shape[-1])
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
        batch.append(network.pad(pixels))
        # A last image that would be alone joins the batch before it.
        if len(batch) >= STATISTICS_BATCH and number != len(files) - 2:
            yield torch.cat(batch)
            batch = []
    if batch:
        yield torch.cat(batch)
