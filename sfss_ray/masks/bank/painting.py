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
from sfss_ray.masks.bank.run_lengths import Counts, from_coco_strings

_PAINTINGS = ("fine", "coarse")
_BITS = 63  # masks in one set
_BIT_OF_EXPONENT = np.arange(1023 + _BITS).clip(1022) - 1022  # of float64; a table beats arithmetic

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
    texts, (_, left, _, width) = [rles[k]["counts"] for k in seen], window
    painted = paint_runs(texts, np.asarray(seen) + 1, size, range(left, left + width))
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
    """The id map of an image, or of some of its columns, as runs that begin anew in each column.

    Attributes:
        size: (H, W) of the image in pixels.
        columns: of the image, n of them, that are painted.
        offsets: int32 (n + 1,), where each column's runs begin in the two arrays below.
        rows: (runs,) first row of each run, uint8, uint16 or int32, the smallest that holds H.
        ids: (runs,) id of each run, 0 where there is no mask; uint8, uint16 or int32.
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
            ConfigError: a row or column that is not painted, or rows out of order.
        """
        self._check(rows, columns)
        if not len(rows) or not len(columns):
            return np.zeros((len(rows), len(columns)), dtype=np.int32)
        columns = columns - self.columns.start
        number = np.diff(self.offsets)[columns]
        run = _ranges(self.offsets[columns], number)
        rows_above = np.searchsorted(rows, np.arange(self.size[0]))
        begin = rows_above[self.rows[run]]
        begin += np.repeat(np.arange(len(columns)) * len(rows), number)
        lengths = np.diff(begin, append=len(rows) * len(columns))
        ids = np.repeat(self.ids[run], lengths).reshape(len(columns), len(rows))
        return cv2.transpose(ids).astype(np.int32)  # numpy's takes longer than all the rest

    def _check(self, rows: Indices, columns: Indices) -> None:
        for name, places, painted in (
            ("rows", rows, range(self.size[0])),
            ("columns", columns, self.columns),
        ):
            if len(places) and not painted.start <= places.min() <= places.max() < painted.stop:
                raise ConfigError(
                    f"{name} {places.min()} to {places.max()} of an image of size (H, W) = "
                    f"{self.size}; painted are {painted.start} to {painted.stop - 1}: is it the image"
                    " of these masks?"
                )
        if (np.diff(rows) < 0).any():
            raise ConfigError(
                "rows of a crop must be in growing order (columns may be in any order); "
                "ask for sorted rows and reorder the result"
            )


def paint_image(
    texts: Sequence[str],
    areas: NDArray[np.int64],
    boxes: NDArray[np.int32],
    size: tuple[int, int],
    painting: str,
    columns: range | None = None,
) -> PaintedRuns:
    """Paint the masks of an image; mask k has id k + 1.

    Args:
        texts: COCO strings.
        areas: (masks,) pixels.
        boxes: (masks, 4) of x, y, w, h as SAM gives them, or COCO. Masks beside `columns` are not
            parsed.
        size: (H, W) of the image in pixels.
        painting: see paint_order.
        columns: to paint at least those of these that the image has; default all.

    Raises:
        DataError: a string that is not COCO RLE of an image of that size.
    """
    order = paint_order(areas, painting)
    if columns is not None:
        columns = range(max(0, columns.start), min(size[1], columns.stop))
        # A box of SAM's is one pixel less wide than its mask.
        left, right = boxes[order, 0], boxes[order, 0] + boxes[order, 2]
        order = order[(left < columns.stop) & (right >= columns.start)]
    return paint_runs([texts[int(k)] for k in order], order + 1, size, columns)


def paint_runs(
    texts: Sequence[str],
    ids: Sequence[int] | Indices,
    size: tuple[int, int],
    columns: range | None = None,
) -> PaintedRuns:
    """Paint masks over each other.

    Args:
        texts: COCO strings, the first at the bottom, the last on top.
        ids: (masks,) what to paint of each mask, from 1.
        size: (H, W) of the image in pixels.
        columns: of the image, to paint these alone; default all.

    Raises:
        DataError: a string that is not COCO RLE of an image of that size.
    """
    number = len(texts)
    bits = number.bit_length()
    columns = range(size[1]) if columns is None else columns
    kind = _short_integers((number + 1) * size[0] * size[1])
    edges = _sorted_edges(*from_coco_strings(texts, kind), size, bits, columns)
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
        columns,
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
    counts: Counts, starts: Indices, size: tuple[int, int], bits: int, columns: range
) -> NDArray[np.signedinteger]:
    """Where masks begin or end, in order: the position, and in the low `bits` the rank from 0.

    Positions count from the first of `columns`; a mask that is open there begins there. The first
    pixel of each column is there too, with the rank after the last: an edge of no mask. Both are in
    one number because sorting plain numbers is several times as fast as sorting indices.
    """
    height, number = size[0], len(starts) - 1
    ends, begin = _ends_of_runs(counts, starts, size), columns.start * height
    # Each mask's positions begin where the last mask's end: they grow over all masks.
    before = np.arange(number) * (height * size[1]) + begin
    first = np.maximum(np.searchsorted(ends, before), starts[:-1])
    last = np.searchsorted(ends, before + len(columns) * height)
    parts = [ends[a:b] for a, b in zip(first.tolist(), last.tolist(), strict=True)]
    seen = np.maximum(last - first, 0)
    kind = _short_integers((len(columns) * height << bits) + number)
    inside = np.concatenate([*parts, ends[:0]])
    inside -= np.repeat(before.astype(ends.dtype), seen)
    inside = inside.astype(kind) << kind(bits)
    inside |= np.repeat(np.arange(number, dtype=kind), seen)
    open_at_first = np.flatnonzero((first - starts[:-1]) % 2).astype(kind)
    first_pixels = (np.arange(len(columns), dtype=kind) * kind(height) << kind(bits)) + kind(number)
    edges = np.concatenate([open_at_first, inside, first_pixels])
    edges.sort()
    return edges


def _short_integers(greatest: int) -> type[np.signedinteger]:
    """The shorter the numbers, the more of them fit into a processor's caches."""
    return np.int32 if greatest <= np.iinfo(np.int32).max else np.int64


def _ends_of_runs(counts: Counts, starts: Indices, size: tuple[int, int]) -> Counts:
    """Pixels up to the end of each run, of all masks one after the other.

    Raises:
        DataError: the runs of a mask are not those of an image of this size.
    """
    pixels, number = size[0] * size[1], len(starts) - 1
    ends = np.cumsum(counts, dtype=counts.dtype)
    some = (np.diff(starts) > 0).all()
    right = some and (ends[starts[1:] - 1] == pixels * np.arange(1, number + 1)).all()
    if not right or not 0 <= counts.min(initial=0) <= counts.max(initial=0) <= pixels:
        raise DataError(
            f"a mask's runs do not sum to the {pixels} pixels of an image of size {size}; "
            "height, width and counts must be of the same mask; check the rows"
        )
    return ends


def _top_after_each(rank: Indices, number: int) -> Indices:
    """1 + the greatest rank that is open after each edge, 0 where none is.

    An edge opens its mask or, the next time, closes it: that is a running exclusive or of bits.
    """
    place = rank.astype(np.intp)  # `take` is twice as fast by it
    highest_set = np.zeros(len(rank), dtype=np.int64)
    least_of_it = np.zeros(len(rank), dtype=rank.dtype)
    for least in range(0, number, _BITS):
        masks = min(_BITS, number - least)
        bits = np.zeros(number + 1, dtype=np.int64)  # ranks of other sets change nothing
        bits[least : least + masks] = np.left_shift(1, np.arange(masks))
        is_open = np.bitwise_xor.accumulate(bits.take(place))
        some = is_open > 0
        np.copyto(highest_set, is_open, where=some)
        np.copyto(least_of_it, rank.dtype.type(least), where=some)
    return _highest_bit(highest_set, rank.dtype) + least_of_it


def _highest_bit(sets: NDArray[np.int64], kind: np.dtype) -> Indices:
    """1 + place of the highest bit, 0 where none is set: the exponent of the number as a float64.

    The bit below the highest one is cleared, so that rounding cannot reach the next power of two.
    """
    exponent = (sets & ~(sets >> 1)).astype(np.float64).view(np.int64) >> 52
    return _BIT_OF_EXPONENT.astype(kind).take(exponent)


def _ranges(begin: NDArray[np.integer], number: NDArray[np.integer]) -> Indices:
    """begin[k], begin[k] + 1, ... of number[k] entries, one k after the other."""
    ends = np.cumsum(number, dtype=np.int64)
    return np.arange(ends[-1]) + np.repeat(begin - (ends - number), number)
