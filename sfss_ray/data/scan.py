"""Looking through labelled pairs on all cores: sizes, ids, pixels per id, what cannot be read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from sfss_ray.data.decoding import image_size
from sfss_ray.data.folders import LabelledImage
from sfss_ray.errors import DataError

Size = tuple[int, int]
_AHEAD = 64  # pairs handed to the threads at a time: results do not pile up


@dataclass(frozen=True)
class PairFacts:
    """What one pair is like. Sizes are (height, width)."""

    item: LabelledImage
    image_size: Size | None
    label_size: Size | None
    histogram: np.ndarray
    """(256,) int64 pixels per raw id."""
    errors: tuple[str, ...] = ()

    @property
    def unequal(self) -> bool:
        """Whether both sizes are known and differ."""
        return None not in (self.image_size, self.label_size) and self.image_size != self.label_size


def look_at_pair(item: LabelledImage, pixels: bool = False) -> PairFacts:
    """Facts of one pair. Of the image only the header is read, unless `pixels` asks for all of it."""
    errors: list[str] = []
    size = label_size = None
    histogram = np.zeros(256, np.int64)
    try:
        image = item.read().shape if pixels else image_size(item.path)
        size = (image[0], image[1])
    except DataError as error:
        errors.append(str(error))
    try:
        assert item.decoding is not None, "pairs are decoded before they are scanned"
        ids = item.decoding.read_raw(item.label_path)
        label_size = (ids.shape[0], ids.shape[1])
        histogram = np.bincount(ids.ravel(), minlength=256)
    except DataError as error:
        errors.append(str(error))
    return PairFacts(item, size, label_size, histogram, tuple(errors))


def scan_pairs(pairs: Sequence[LabelledImage], pixels: bool = False) -> Iterator[PairFacts]:
    """Facts of every pair, in order. Decoders of images work outside Python's lock: threads do."""
    waiting = iter(pairs)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while chunk := list(islice(waiting, _AHEAD)):
            yield from pool.map(lambda item: look_at_pair(item, pixels), chunk)
