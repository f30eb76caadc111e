"""Pixels of each class of a prediction, in the run lengths of COCO and of CVAT.

The image is read once by columns and once by rows, whatever the number of classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfss_ray.masks.bank.run_lengths import to_coco_strings

_Positions = NDArray[np.int64]


@dataclass(frozen=True)
class ClassRegion:
    """All pixels of one class in an image."""

    class_index: int
    area: int
    """Number of pixels."""
    box: tuple[int, int, int, int]
    """x, y, width, height in pixels, as COCO counts them."""
    size: tuple[int, int]
    """(H, W) of the image."""
    coco_counts: str
    """COCO's compressed run lengths: column by column, of the whole image."""
    cvat_counts: list[int]
    """CVAT's run lengths: row by row, inside the box, beginning with background."""


def regions_of_classes(train_ids: np.ndarray) -> list[ClassRegion]:
    """Return the region of each class of a prediction, uint8 (H, W), in the order of the classes."""
    height, width = train_ids.shape
    columns = _Runs(np.ascontiguousarray(train_ids.T).reshape(-1))
    rows = _Runs(np.ascontiguousarray(train_ids).reshape(-1), width)
    indices = np.unique(columns.values).tolist()
    coco = to_coco_strings([_counts(*columns.of_class(index), height * width) for index in indices])
    return [
        _region(index, counts, rows, (height, width))
        for index, counts in zip(indices, coco, strict=True)
    ]


class _Runs:
    """Runs of equal values."""

    def __init__(self, flat: np.ndarray, length: int = 0):
        """
        Args:
            flat: all pixels.
            length: of a row, at whose end every run ends; 0 for none.
        """
        begins = np.empty(len(flat), dtype=bool)
        begins[:1] = True
        np.not_equal(flat[1:], flat[:-1], out=begins[1:])
        if length:
            begins[::length] = True
        self.starts = np.flatnonzero(begins)
        self.ends = np.append(self.starts[1:], len(flat))
        self.values = flat[self.starts]

    def of_class(self, index: int) -> tuple[_Positions, _Positions]:
        """Return the starts and ends of the runs of a value."""
        is_class = self.values == index
        return self.starts[is_class], self.ends[is_class]


def _counts(starts: _Positions, ends: _Positions, total: int) -> _Positions:
    """Return the lengths of alternating runs, beginning with background; runs that touch are one."""
    edges = np.stack([starts, ends], axis=1).reshape(-1)
    touches = edges[1:-1:2] == edges[2::2]
    keep = np.ones(len(edges), dtype=bool)
    keep[1:-1:2], keep[2::2] = ~touches, ~touches
    counts = np.diff(edges[keep], prepend=0, append=total)
    return counts[:-1] if counts[-1] == 0 else counts


def _region(index: int, coco_counts: str, rows: _Runs, size: tuple[int, int]) -> ClassRegion:
    starts, ends = rows.of_class(index)
    y = starts // size[1]
    first, last = starts - y * size[1], ends - y * size[1]
    x_min, y_min = int(first.min()), int(y[0])
    width, height = int(last.max()) - x_min, int(y[-1]) + 1 - y_min
    origin = (y - y_min) * width - x_min  # position in the box of the image's column 0
    return ClassRegion(
        index,
        int((ends - starts).sum()),
        (x_min, y_min, width, height),
        size,
        coco_counts,
        _counts(origin + first, origin + last, width * height).tolist(),
    )
