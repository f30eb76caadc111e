"""Scanning of labelled pairs on all cores: sizes, pixels per id, and read errors."""

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
_CHUNK = 64  # pairs submitted to the threads at a time, so that results do not pile up


@dataclass(frozen=True)
class PairFacts:
    """What a scan measures of one pair. Sizes are (height, width)."""

    pair: LabelledImage
    image_size: Size | None
    label_size: Size | None
    histogram: np.ndarray
    """(256,) int64 pixels per raw id."""
    errors: tuple[str, ...] = ()
    """One line for each file of the pair that cannot be read."""

    @property
    def sizes_differ(self) -> bool:
        """Whether both sizes are known and differ."""
        return None not in (self.image_size, self.label_size) and self.image_size != self.label_size


def inspect_pair(pair: LabelledImage, read_pixels: bool = False) -> PairFacts:
    """Measure one pair. Only the header of the image is read unless `read_pixels` is set."""
    errors: list[str] = []
    size = label_size = None
    histogram = np.zeros(256, np.int64)
    try:
        shape = pair.read().shape if read_pixels else image_size(pair.path)
        size = (shape[0], shape[1])
    except DataError as error:
        errors.append(str(error))
    try:
        assert pair.decoding is not None, "pairs get their decoding before they are scanned"
        ids = pair.decoding.read_raw(pair.label_path)
        label_size = (ids.shape[0], ids.shape[1])
        histogram = np.bincount(ids.ravel(), minlength=256)
    except DataError as error:
        errors.append(str(error))
    return PairFacts(pair, size, label_size, histogram, tuple(errors))


def scan_pairs(pairs: Sequence[LabelledImage], read_pixels: bool = False) -> Iterator[PairFacts]:
    """Yield the facts of every pair in order; see `inspect_pair`."""
    remaining = iter(pairs)
    # Threads are enough: image decoders release Python's global lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while chunk := list(islice(remaining, _CHUNK)):
            yield from pool.map(lambda pair: inspect_pair(pair, read_pixels), chunk)
