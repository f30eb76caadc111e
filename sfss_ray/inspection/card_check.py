"""Comparison of likely cards on a user's images, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from sfss_ray.data.folders import ImageFile, LabelledImage
from sfss_ray.errors import DataError
from sfss_ray.inspection.card_evidence import (
    find_regions,
    prediction_information,
    region_information,
    statistics_distance,
)
from sfss_ray.inspection.likely_cards import (
    cards_to_compare,
    changed_entries,
    describe_preparation,
    prepares_alike,
)
from sfss_ray.models.card import Card
from sfss_ray.models.segmenter import Segmenter
from sfss_ray.runtime.progress import Progress, ProgressSink

SAMPLE_IMAGES = 8
MAX_SIDE = 640
"""Longest side at which cards are compared."""
_MIN_SIDE = 32
_MIN_IMAGES = 4
"""Images from which predictions say which card is better; BatchNorm needs a single one."""
_FIT_MARGIN = 1.0
"""Cards whose distance is larger than the smallest by more than this do not fit."""
_UNKNOWN_DISTANCE = 2.0
"""No likely card fits where the smallest distance is larger."""
_MIN_INFORMATION = 0.3
"""Nats below which predictions are too uniform to compare cards."""
_SHARE_OF_IMAGES = 0.6
"""Images on which the better card must be better."""


@dataclass(frozen=True)
class _Gains:
    """Relative gains of information from which a card is called better, by what is known of it."""

    stated: float
    """The better card is the checkpoint's own, which the user replaced."""
    other: float
    """Neither card is."""
    against_stated: float
    """The card in use is."""


_GAINS_WITH_STATISTICS = _Gains(stated=0.01, other=0.05, against_stated=0.1)
"""Among cards that fit the statistics of BatchNorm."""
_GAINS_WITHOUT = _Gains(stated=0.05, other=0.2, against_stated=0.2)
"""Of region information, without BatchNorm to rule out wrong value ranges."""


@dataclass(frozen=True)
class CardCheck:
    """Whether another card suits the weights clearly better than the card in use."""

    compared: int
    """Cards compared."""
    images: int
    """Images they were compared on."""
    better: Card | None = None
    """The better card, if the evidence is strong."""
    warning: str = ""
    """What is wrong with the card in use, and what to give instead."""
    distance: float | None = None
    """Of the card in use, see `statistics_distance`; None without BatchNorm statistics."""
    best_distance: float | None = None
    """The smallest distance of all cards."""
    is_judged: bool = True
    """Whether there was evidence at all."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warning, if there is one."""
        return (self.warning,) if self.warning else ()

    def line(self) -> str:
        """Return what was compared, for people."""
        if not self.is_judged:
            return (
                f"card check: not possible with {self.images} readable images: a network without"
                f" BatchNorm statistics needs {_MIN_IMAGES}"
                if self.images
                else "card check: not possible: no image of the sample can be read"
            )
        outcome = "the card in use is not the best" if self.warning else "none is clearly better"
        line = f"card check: {self.compared} likely cards on {self.images} images, {outcome}"
        if self.distance is None or self.best_distance is None:
            return line
        return (
            f"{line} (BatchNorm inputs are {self.distance:.2f} from those of the training, and"
            f" {self.best_distance:.2f} with the nearest card)"
        )


@dataclass(frozen=True, eq=False)
class _Evidence:
    """How well a card suits the weights."""

    card: Card
    distance: float
    """See `statistics_distance`; NaN without BatchNorm."""
    information: np.ndarray
    """(1 + images,) of all images, then of each; empty if the card does not fit."""


def check_card(
    network: Segmenter,
    files: Sequence[ImageFile] | Sequence[LabelledImage],
    stated: Card | None,
    progress: ProgressSink,
) -> CardCheck:
    """Compare the network's card with likely ones on a sample of images.

    Args:
        network: In eval mode. Its card is the same afterwards.
        files: Images of the source or the target domain.
        stated: The card that the checkpoint's family or the model file states, if any.
        progress: Called with a line of text as work goes on.

    Returns:
        The check. It is empty if no image of the sample can be read.
    """
    current = network.card()
    sample = _read_sample(files, network.size_multiple)
    if not sample:
        return CardCheck(0, 0, is_judged=False)
    device = next(network.parameters()).device
    images = [_to_batch(pixels).to(device) for pixels in sample]
    cards = cards_to_compare(current, stated)
    try:
        evidence = _gather(network, cards, images, sample, progress)
    finally:
        network.use_card(current)
    better, warning = _judge(evidence, stated)
    distances = [e.distance for e in evidence]
    has_statistics = bool(np.isfinite(distances).all())
    return CardCheck(
        len(cards),
        len(images),
        better,
        warning,
        distance=distances[0] if has_statistics else None,
        best_distance=min(distances) if has_statistics else None,
        is_judged=any(len(e.information) for e in evidence),
    )


def _read_sample(
    files: Sequence[ImageFile] | Sequence[LabelledImage], multiple: int
) -> list[np.ndarray]:
    """Read RGB images spread over all files, at a moderate size whose sides are multiples."""
    count = min(SAMPLE_IMAGES, len(files))
    chosen = [files[i * len(files) // count] for i in range(count)]
    sample = []
    for file in chosen:
        try:
            image = file.read()
        except DataError:
            continue
        height, width = image.shape[:2]
        scale = min(1.0, MAX_SIDE / max(height, width))
        height, width = (
            multiple * max(round(side * scale / multiple), -(-_MIN_SIDE // multiple))
            for side in (height, width)
        )
        sample.append(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
    return sample


def _to_batch(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255


def _gather(
    network: Segmenter,
    cards: Sequence[Card],
    images: Sequence[Tensor],
    sample: Sequence[np.ndarray],
    progress: ProgressSink,
) -> list[_Evidence]:
    """Measure all cards; predictions are measured only for those that fit BatchNorm's statistics."""
    with Progress("compared cards", len(cards), progress) as bar:
        distances = [statistics_distance(network.use_card(card), images) for card in cards]
        has_statistics = np.isfinite(distances).all()
        limit = min(distances) + _FIT_MARGIN if has_statistics else float("inf")
        regions = [] if has_statistics else [find_regions(pixels) for pixels in sample]
        evidence = []
        for card, distance in zip(cards, distances, strict=True):
            network.use_card(card)
            information = np.array([])
            if has_statistics and distance <= limit:
                information = prediction_information(network, images)
            elif not has_statistics and len(images) >= _MIN_IMAGES:
                information = region_information(network, images, regions)
            evidence.append(_Evidence(card, distance, information))
            bar.advance(1)
    return evidence


def _judge(evidence: Sequence[_Evidence], stated: Card | None) -> tuple[Card | None, str]:
    """Return the better card, if the evidence is strong, and a warning; None and "" otherwise.

    Args:
        evidence: Of all cards, that of the card in use first.
        stated: The checkpoint's own card, if any.
    """
    current = evidence[0]
    measured = [e for e in evidence if len(e.information) and np.isfinite(e.information).all()]
    if not measured:
        return None, ""
    best = max(measured, key=lambda e: e.information[0])
    as_stated = [e for e in measured if stated is not None and prepares_alike(e.card, stated)]
    has_statistics = bool(np.isfinite(current.distance))
    if has_statistics and min(e.distance for e in evidence) > _UNKNOWN_DISTANCE:
        return None, _unknown_warning(evidence)

    gains = _GAINS_WITH_STATISTICS if has_statistics else _GAINS_WITHOUT
    # The checkpoint's own card is preferred unless another one is clearly better.
    if as_stated and best.information[0] < as_stated[0].information[0] * (1 + gains.against_stated):
        best = as_stated[0]
    if best is current:
        return None, ""
    if not len(current.information):
        return best.card, _statistics_warning(current, best)
    if current in as_stated:
        gain = gains.against_stated
    else:
        gain = gains.stated if best in as_stated else gains.other
    if not _exceeds(best.information, current.information, gain):
        return None, ""
    return best.card, _information_warning(current, best)


def _exceeds(better: np.ndarray, current: np.ndarray, gain: float) -> bool:
    """Whether information is higher by a relative gain, and on most of enough images."""
    images = len(better) - 1
    return bool(
        images >= _MIN_IMAGES
        and better[0] >= _MIN_INFORMATION
        and better[0] >= (1 + gain) * current[0]
        and (better[1:] > current[1:]).mean() >= _SHARE_OF_IMAGES
    )


def _statistics_warning(current: _Evidence, best: _Evidence) -> str:
    return (
        f"the card in use ({describe_preparation(current.card)}) does not fit these weights: inputs of"
        f" the first BatchNorm layers are {current.distance:.1f} away from those of the training, and"
        f" {best.distance:.1f} with {describe_preparation(best.card)}; {_advice(current, best)}"
    )


def _information_warning(current: _Evidence, best: _Evidence) -> str:
    better_images = int((best.information[1:] > current.information[1:]).sum())
    return (
        f"the card in use ({describe_preparation(current.card)}) is probably wrong: predictions carry"
        f" {current.information[0]:.2f} nats of information, and {best.information[0]:.2f} with"
        f" {describe_preparation(best.card)} (more on {better_images} of"
        f" {len(best.information) - 1} images); {_advice(current, best)}"
    )


def _advice(current: _Evidence, best: _Evidence) -> str:
    return f"give --card a JSON file with {changed_entries(current.card, best.card)}"


def _unknown_warning(evidence: Sequence[_Evidence]) -> str:
    return (
        f"neither the card in use ({describe_preparation(evidence[0].card)}) nor any of"
        f" {len(evidence) - 1} other likely cards fits these weights: inputs of the first BatchNorm"
        f" layers are at least {min(e.distance for e in evidence):.1f} away from those of the training;"
        " look up mean, std, channel_order and value_range in the code that trained them, and give"
        " them in --card"
    )
