"""One mask in a JSON file: COCO's run lengths, polygons, or rows of pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from sfss_ray.errors import DataError
from sfss_ray.masks.bank.run_lengths import (
    Counts,
    encode_masks,
    from_coco_string,
    to_coco_string,
)
from sfss_ray.masks.importing.polygons import polygon_counts
from sfss_ray.masks.importing.records import check_size


def read_segmentation(segmentation: Any, size: tuple[int, int]) -> tuple[Counts, str]:
    """Return the run lengths of a mask, as numbers and as a COCO string.

    Args:
        segmentation: `{"size": [H, W], "counts": ...}` with a compressed string or a list of lengths;
            polygons `[[x, y, x, y, ...], ...]`, or one alone; or H rows of W pixels, each a bool or 0
            or 1.
        size: (H, W) of the image.

    Raises:
        DataError: the mask has another form or another size than its image.
        TypeError, ValueError, LookupError: likewise.
    """
    if isinstance(segmentation, Mapping):
        return _read_runs(segmentation, size)
    if not isinstance(segmentation, list) or not segmentation:
        raise DataError(
            f"its segmentation is {str(segmentation)[:40]!r}: allowed are run lengths or polygons"
        )
    if _are_rows(segmentation, size):
        return read_pixels(segmentation, size)
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    counts = polygon_counts(polygons, size)
    return counts, to_coco_string(counts)


def _read_runs(runs: Mapping[str, Any], size: tuple[int, int]) -> tuple[Counts, str]:
    check_size(runs["size"], size)
    text = runs["counts"]
    counts = from_coco_string(text) if isinstance(text, str) else _lengths(text)
    if counts.sum() != size[0] * size[1] or (counts < 0).any():
        raise DataError(f"its runs cover {counts.sum()} pixels, not {size[0] * size[1]}")
    return counts, text if isinstance(text, str) else to_coco_string(counts)


def _lengths(numbers: Any) -> Counts:
    lengths = np.asarray(numbers)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise DataError(
            f"its counts are {str(numbers)[:40]!r}: allowed are a string or whole numbers"
        )
    return lengths.astype(np.int64)


def _are_rows(lists: Sequence[Any], size: tuple[int, int]) -> bool:
    """Return whether lists are pixels, not polygons, whose coordinates are rarely all 0 or 1."""
    if not all(isinstance(row, list) for row in lists) or not lists[0]:
        return False
    if isinstance(lists[0][0], bool):
        return True
    has_size = len(lists) == size[0] and len(lists[0]) == size[1]
    return (has_size or len(lists) > 1) and all(v in (0, 1) for v in chain.from_iterable(lists))


def read_pixels(mask: Any, size: tuple[int, int]) -> tuple[Counts, str]:
    """Return the run lengths of a mask given as COCO's run lengths or as H rows of W pixels.

    Raises:
        DataError: the mask has another form or another size than its image.
    """
    if isinstance(mask, Mapping):
        return _read_runs(mask, size)
    pixels = np.asarray(mask)
    if pixels.ndim != 2 or pixels.dtype.kind not in "biuf":
        raise DataError(f"it is {str(mask)[:40]!r}: allowed are run lengths or rows of pixels")
    return encode_pixels(pixels, size)


def encode_pixels(pixels: np.ndarray, size: tuple[int, int]) -> tuple[Counts, str]:
    """Return the run lengths of a mask (H, W) whose pixels are not 0, as numbers and as a COCO string.

    Raises:
        DataError: it has not the size of its image.
    """
    check_size(pixels.shape, size)
    counts = encode_masks([np.asfortranarray(pixels != 0)])[0]
    return counts, to_coco_string(counts)
