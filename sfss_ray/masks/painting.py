"""Masks painted over each other without touching a pixel: run lengths in, visible runs out.

Which mask is on top changes only where some mask begins or ends. So the edges of all masks are
sorted once, the masks that are open after each edge are a set of bits, and the highest bit is the
mask on top. What is left is a list of runs per image column, smaller than the masks themselves,
from which any crop at any zoom is a gather and one np.repeat: time goes with the pixels of the crop,
not with the image or with how often masks cover each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sfss_ray.errors import ConfigError, DataError
from sfss_ray.masks.rle import Counts, from_coco_strings

_PAINTINGS = ("fine", "coarse")
_BITS = 64  # masks in one set

Window = tuple[int, int, int, int]
Indices = NDArray[np.integer]


def paint_order(areas: Sequence[int] | NDArray[np.int64], painting: str) -> NDArray[np.int64]:
    """Indices in the order to paint: the first is at the bottom, the last on top.

    Args:
        areas: foreground pixels of each mask.
        painting: "fine" puts the smallest mask on top, "coarse" the largest. Of two masks of
            equal area the one with the higher index is on top.

    Raises:
        ConfigError: another name than these two.
    """
    if painting not in _PAINTINGS:
        raise ConfigError(f"painting is {painting!r}; allowed are 'fine' and 'coarse'; choose one")
    key = np.asarray(areas, dtype=np.int64)
    return np.argsort(-key if painting == "fine" else key, kind="stable")


def paint_id_map(
    rles: Sequence[Mapping[str, Any]],
    order: Sequence[int] | NDArray[np.int64],
    window: Window | None = None,
    image_size: tuple[int, int] | None = None,
) -> NDArray[np.int32]:
    """Id map of a window of the image, of masks that are used once.

    Args:
        rles: for each mask "counts" (COCO string), "height" and "width" of the image, and "bbox"
            (x, y, w, h) in pixels. Masks whose bbox misses the window are not parsed. Both
            conventions for w and h are fine: COCO's, and SAM's, which is one pixel less.
        order: indices into `rles`, painted one over the other; the last is on top. Masks that are
            left out are not painted. See paint_order.
        window: (y0, x0, h, w) in pixels inside the image, default the whole image.
        image_size: (H, W), needed when `rles` may be empty and no window is given.

    Returns:
        int32 (h, w): k + 1 where mask k is on top, 0 where there is no mask.

    Raises:
        ConfigError: the window does not lie inside the image, or the image size is unknown.
        DataError: masks of another image size, or a string that is not COCO RLE of that size.
    """
    size = _common_size(rles, image_size)
    window = checked_window(window, size)
    seen = [int(k) for k in order if _bbox_meets(rles[int(k)]["bbox"], window)]
    if not seen or size is None:
        return np.zeros(window[2:], dtype=np.int32)
    painted = paint_runs([rles[k]["counts"] for k in seen], np.asarray(seen) + 1, size)
    return painted.window(window)


def _common_size(
    rles: Sequence[Mapping[str, Any]], image_size: tuple[int, int] | None
) -> tuple[int, int] | None:
    sizes = {(int(rle["height"]), int(rle["width"])) for rle in rles}
    sizes |= set() if image_size is None else {(int(image_size[0]), int(image_size[1]))}
    if len(sizes) > 1:
        raise DataError(
            f"masks of different image sizes {sorted(sizes)} in one list; "
            "all must be (height, width) of the same image; check which rows were joined"
        )
    return next(iter(sizes), None)


def checked_window(window: Window | None, size: tuple[int, int] | None) -> Window:
    """The window (y0, x0, h, w), default the whole image of size (H, W).

    Raises:
        ConfigError: it does not lie inside the image, or neither of both is given.
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


def _bbox_meets(bbox: Sequence[float], window: Window) -> bool:
    """Whether box and window overlap; the right and lower edge count as inside."""
    x, y, box_w, box_h = bbox
    y0, x0, h, w = window
    return x < x0 + w and x + box_w >= x0 and y < y0 + h and y + box_h >= y0


@dataclass(frozen=True)
class PaintedRuns:
    """The id map of an image as runs that begin anew in each column.

    Attributes:
        size: (H, W) in pixels.
        offsets: int32 (W + 1,), where each column's runs begin in the two arrays below.
        rows: (runs,) first row of each run, uint8, uint16 or int32, the smallest that holds H.
        ids: (runs,) id of each run, 0 where there is no mask; uint8, uint16 or int32.
    """

    size: tuple[int, int]
    offsets: NDArray[np.int32]
    rows: Indices
    ids: Indices

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.offsets.nbytes + self.rows.nbytes + self.ids.nbytes

    def window(self, window: Window | None = None) -> NDArray[np.int32]:
        """int32 (h, w), the ids of a window (y0, x0, h, w), default of the whole image.

        Raises:
            ConfigError: the window does not lie inside the image.
        """
        y0, x0, h, w = checked_window(window, self.size)
        return self.at(np.arange(y0, y0 + h), np.arange(x0, x0 + w))

    def at(self, rows: Indices, columns: Indices) -> NDArray[np.int32]:
        """int32 (h, w), the ids of all pixels (rows[i], columns[j]).

        Args:
            rows: (h,) image rows in growing order; one may come several times, as in zooming.
            columns: (w,) image columns in any order.

        Raises:
            ConfigError: a row or column outside the image, or rows out of order.
        """
        self._check(rows, columns)
        if not len(rows) or not len(columns):
            return np.zeros((len(rows), len(columns)), dtype=np.int32)
        number = np.diff(self.offsets)[columns]
        run = _ranges(self.offsets[columns], number)
        rows_above = np.searchsorted(rows, np.arange(self.size[0]))
        begin = rows_above[self.rows[run]]
        begin += np.repeat(np.arange(len(columns)) * len(rows), number)
        lengths = np.diff(begin, append=len(rows) * len(columns))
        ids = np.repeat(self.ids[run], lengths).reshape(len(columns), len(rows))
        return cv2.transpose(ids).astype(np.int32)  # numpy's takes longer than all the rest

    def _check(self, rows: Indices, columns: Indices) -> None:
        for name, places, length in (
            ("rows", rows, self.size[0]),
            ("columns", columns, self.size[1]),
        ):
            if len(places) and not 0 <= places.min() <= places.max() < length:
                raise ConfigError(
                    f"{name} {places.min()} to {places.max()} of an image of size (H, W) = "
                    f"{self.size}; allowed are 0 to {length - 1}: is it the image of these masks?"
                )
        if (np.diff(rows) < 0).any():
            raise ConfigError(
                "rows of a crop must be in growing order (columns may be in any order); "
                "ask for sorted rows and reorder the result"
            )


def paint_runs(
    texts: Sequence[str], ids: Sequence[int] | Indices, size: tuple[int, int]
) -> PaintedRuns:
    """Paint whole masks over each other.

    Args:
        texts: COCO strings, the first at the bottom, the last on top.
        ids: (masks,) what to paint of each mask, from 1.
        size: (H, W) of the image in pixels.

    Raises:
        DataError: a string that is not COCO RLE of an image of that size.
    """
    number = len(texts)
    bits = number.bit_length()
    edges = _sorted_edges(*from_coco_strings(texts), size, bits)
    rank = (edges & ((1 << bits) - 1)).astype(np.min_scalar_type(number))
    top = _top_after_each(rank, number)
    # Many edges lie below another mask. Of those at one pixel only the last tells what is on top.
    seen = np.flatnonzero(_changes(top) | (rank == number))
    position, top = edges[seen] >> bits, top[seen]
    last = np.flatnonzero(np.append(position[1:] != position[:-1], True)[: len(position)])
    position, top = position[last], top[last]
    row = position - position // max(size[0], 1) * size[0]
    kept = np.flatnonzero(_changes(top) | (row == 0))
    row, id_of_top = row[kept], np.append(0, np.asarray(ids, dtype=np.int64))
    return PaintedRuns(
        size,
        np.append(np.flatnonzero(row == 0), len(row)).astype(np.int32),
        row.astype(_smallest_type(size[0])),
        id_of_top.astype(_smallest_type(int(id_of_top.max())))[top[kept]],
    )


def _smallest_type(greatest: int) -> type[np.integer]:
    """Of the types that OpenCV knows, too."""
    fitting = (t for t in (np.uint8, np.uint16) if greatest <= np.iinfo(t).max)
    return next(fitting, np.int32)


def _changes(values: Indices) -> NDArray[np.bool_]:
    """Whether each value differs from the one before; the first does."""
    return np.append(True, values[1:] != values[:-1])[: len(values)]


def _sorted_edges(
    counts: Counts, starts: Indices, size: tuple[int, int], bits: int
) -> NDArray[np.unsignedinteger]:
    """Where masks begin or end, in order: the position, and in the low `bits` the rank from 0.

    The first pixel of each column is there too, with the rank after the last: an edge of no mask.
    Both are in one number because sorting plain numbers is several times as fast as sorting
    indices.
    """
    height, width = size
    number, lengths = len(starts) - 1, np.diff(starts)
    _check_sums(counts, starts, size)
    kind = np.min_scalar_type(((height * width) << bits) + number)
    edges = np.empty(len(counts) + width, dtype=kind)
    # One sum over all masks, less the masks before. It may wrap around: what is left of it fits.
    np.cumsum(counts << bits, dtype=kind, out=edges[: len(counts)])
    masks_before = np.arange(number) * (height * width << bits) - np.arange(number)
    edges[: len(counts)] -= np.repeat(masks_before.astype(kind), lengths)
    edges[len(counts) :] = (np.arange(width) * height << bits) + number
    edges.sort()
    return edges[: np.searchsorted(edges, kind.type(height * width << bits))]


def _check_sums(counts: Counts, starts: Indices, size: tuple[int, int]) -> None:
    pixels, some = size[0] * size[1], (np.diff(starts) > 0).all()
    # Where a mask has no counts reduceat would give it those of the next one.
    sums = np.add.reduceat(counts, starts[:-1]) if some and len(counts) else np.zeros(0)
    if not some or (sums != pixels).any() or counts.min(initial=0) < 0:
        raise DataError(
            f"a mask's runs do not sum to the {pixels} pixels of an image of size {size}; "
            "height, width and counts must be of the same mask; check the rows"
        )


def _top_after_each(rank: Indices, number: int) -> Indices:
    """1 + the greatest rank that is open after each edge, 0 where none is.

    An edge opens its mask or, the next time, closes it: that is a running exclusive or of bits.
    """
    top = np.zeros(len(rank), dtype=rank.dtype)
    for least in range(0, number, _BITS):
        edge = np.flatnonzero((rank >= least) & (rank < min(least + _BITS, number)))
        if len(edge):
            bit = np.uint64(1) << (rank[edge] - least).astype(np.uint64)
            highest = _highest_bit(np.bitwise_xor.accumulate(bit))
            highest = np.where(highest > 0, highest + least, 0).astype(top.dtype)
            later = top[edge[0] :]
            np.maximum(later, np.repeat(highest, np.diff(edge, append=len(rank))), out=later)
    return top


def _highest_bit(sets: NDArray[np.uint64]) -> NDArray[np.int64]:
    """1 + place of the highest bit, 0 where none is set: the exponent of the number as a float64.

    The bit below the highest one is cleared, so that rounding cannot reach the next power of two.
    """
    exponent = (sets & ~(sets >> np.uint64(1))).astype(np.float64).view(np.int64) >> 52
    return np.maximum(exponent - 1022, 0)


def _ranges(begin: NDArray[np.integer], number: NDArray[np.integer]) -> Indices:
    """begin[k], begin[k] + 1, ... of number[k] entries, one k after the other."""
    ends = np.cumsum(number, dtype=np.int64)
    return np.arange(ends[-1]) + np.repeat(begin - (ends - number), number)
