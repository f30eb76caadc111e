"""An id map stored as runs per image column, from which any crop at any zoom is gathered."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sfss_ray.errors import ConfigError

Window = tuple[int, int, int, int]  # y0, x0, h, w in pixels
Indices = NDArray[np.integer]


@dataclass(frozen=True)
class PaintedRuns:
    """The id map of an image, or of some of its columns, as runs that restart in each column.

    Attributes:
        size: (H, W) of the image in pixels.
        columns: the n painted columns of the image.
        offsets: int32 (n + 1,), where each column's runs begin in the two arrays below.
        rows: (runs,) first row of each run, in the smallest of uint8, uint16, int32 that holds H.
        ids: (runs,) id of each run, 0 = no mask; uint8, uint16 or int32.
    """

    size: tuple[int, int]
    columns: range
    offsets: NDArray[np.int32]
    rows: Indices
    ids: Indices

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.offsets.nbytes + self.rows.nbytes + self.ids.nbytes

    def window(self, window: Window | None = None) -> NDArray[np.int32]:
        """Return the ids of a window (y0, x0, h, w), default the whole image, as int32 (h, w).

        Raises:
            ConfigError: the window does not lie inside the image.
        """
        y0, x0, h, w = checked_window(window, self.size)
        return self.at(np.arange(y0, y0 + h), np.arange(x0, x0 + w))

    def at(self, rows: Indices, columns: Indices) -> NDArray[np.int32]:
        """Return the ids of all pixels (rows[i], columns[j]), as int32 (h, w).

        Args:
            rows: (h,) image rows in ascending order; rows may repeat, as in zooming.
            columns: (w,) image columns in any order.

        Raises:
            ConfigError: a row or column is not painted, or the rows are not in order.
        """
        self._check(rows, columns)
        if not len(rows) or not len(columns):
            return np.zeros((len(rows), len(columns)), dtype=np.int32)
        columns = columns - self.columns.start
        n_runs = np.diff(self.offsets)[columns]
        run = _concatenated_ranges(self.offsets[columns], n_runs)
        # A run begins at the first requested row that is not above it.
        rows_above = np.searchsorted(rows, np.arange(self.size[0]))
        begin = rows_above[self.rows[run]]
        begin += np.repeat(np.arange(len(columns)) * len(rows), n_runs)
        lengths = np.diff(begin, append=len(rows) * len(columns))
        ids = np.repeat(self.ids[run], lengths).reshape(len(columns), len(rows))
        return cv2.transpose(ids).astype(np.int32)  # numpy's transpose takes longer than the rest

    def _check(self, rows: Indices, columns: Indices) -> None:
        for name, indices, painted in (
            ("rows", rows, range(self.size[0])),
            ("columns", columns, self.columns),
        ):
            if len(indices) and not painted.start <= indices.min() <= indices.max() < painted.stop:
                raise ConfigError(
                    f"{name} {indices.min()} to {indices.max()} of an image of size (H, W) = "
                    f"{self.size}; painted are {painted.start} to {painted.stop - 1}: is it the image"
                    " of these masks?"
                )
        if (np.diff(rows) < 0).any():
            raise ConfigError(
                "rows of a crop must be in ascending order (columns may be in any order); "
                "pass sorted rows and reorder the result"
            )


def checked_window(window: Window | None, size: tuple[int, int] | None) -> Window:
    """Return the window (y0, x0, h, w), by default the whole image of size (H, W).

    Raises:
        ConfigError: the window does not lie inside the image, or neither argument is given.
    """
    if window is None:
        if size is None:
            raise ConfigError("no masks and no window: give window or image_size to know the shape")
        return 0, 0, size[0], size[1]
    y0, x0, h, w = (int(v) for v in window)
    fits = min(y0, x0, h, w) >= 0
    if not fits or (size is not None and (y0 + h > size[0] or x0 + w > size[1])):
        raise ConfigError(
            f"window (y0, x0, h, w) = {(y0, x0, h, w)} does not lie inside the image of size "
            f"(H, W) = {size}; move or shrink it, and pad the result instead"
        )
    return y0, x0, h, w


def _concatenated_ranges(begin: Indices, lengths: Indices) -> Indices:
    """Return begin[k], begin[k] + 1, ... with lengths[k] entries, one k after the other."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.arange(ends[-1]) + np.repeat(begin - (ends - lengths), lengths)
