"""Masks painted over each other without touching a pixel: run lengths in, visible runs out.

The mask on top changes only where some mask begins or ends. The edges of all masks are therefore
sorted once. The masks that are open after each edge are a set of bits, and the highest bit is the mask
on top. The result is a list of runs per image column, smaller than the masks themselves. Any crop at
any zoom is then a gather and one np.repeat. The time depends on the pixels of the crop, not on the
image or on how many masks overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfss_ray.errors import ConfigError, DataError
from sfss_ray.masks.bank.painted_runs import Indices, PaintedRuns, Window, checked_window
from sfss_ray.masks.bank.run_lengths import Counts, from_coco_strings

_PAINTINGS = ("fine", "coarse")
_BITS = 63  # masks in one set
_BIT_OF_EXPONENT = np.arange(1023 + _BITS).clip(1022) - 1022  # of float64; a table beats arithmetic


def paint_order(areas: Sequence[int] | NDArray[np.int64], painting: str) -> NDArray[np.int64]:
    """Return the indices in the order to paint: the first is at the bottom, the last on top.

    Args:
        areas: foreground pixels of each mask.
        painting: "fine" puts the smallest mask on top, "coarse" the largest. Of two masks of
            equal area the one with the higher index is on top.

    Raises:
        ConfigError: `painting` is neither.
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
    """Return the id map of a window of the image, for masks that are painted once.

    Args:
        rles: for each mask "counts" (COCO string), "height" and "width" of the image, and "bbox"
            (x, y, w, h) in pixels. Masks whose bbox misses the window are not parsed. Both
            conventions for w and h are fine: COCO's, and SAM's, which is one pixel less.
        order: indices into `rles`, painted one over the other; the last is on top. Masks missing
            in it are not painted. See paint_order.
        window: (y0, x0, h, w) in pixels inside the image, default the whole image.
        image_size: (H, W), needed if `rles` may be empty and no window is given.

    Returns:
        int32 (h, w): k + 1 where mask k is on top, 0 = no mask.

    Raises:
        ConfigError: the window does not lie inside the image, or the image size is unknown.
        DataError: masks of another image size, or a string that is not COCO RLE of that size.
    """
    size = _common_size(rles, image_size)
    window = checked_window(window, size)
    indices = [int(k) for k in order if _bbox_overlaps(rles[int(k)]["bbox"], window)]
    if not indices or size is None:
        return np.zeros(window[2:], dtype=np.int32)
    texts, (_, x0, _, width) = [rles[k]["counts"] for k in indices], window
    painted = paint_runs(texts, np.asarray(indices) + 1, size, range(x0, x0 + width))
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


def _bbox_overlaps(bbox: Sequence[float], window: Window) -> bool:
    """Return whether box and window overlap; the right and lower edge count as inside."""
    x, y, box_w, box_h = bbox
    y0, x0, h, w = window
    return x < x0 + w and x + box_w >= x0 and y < y0 + h and y + box_h >= y0


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
        boxes: (masks, 4), x y w h in SAM's or COCO's convention. Masks outside `columns` are not
            parsed.
        size: (H, W) of the image in pixels.
        painting: see paint_order.
        columns: of the image, to be painted at least; default all. Columns outside the image are
            ignored.

    Raises:
        DataError: a string is not COCO RLE of an image of that size.
    """
    order = paint_order(areas, painting)
    if columns is not None:
        columns = range(max(0, columns.start), min(size[1], columns.stop))
        # In SAM's convention a box is one pixel narrower than its mask.
        x_min, x_max = boxes[order, 0], boxes[order, 0] + boxes[order, 2]
        order = order[(x_min < columns.stop) & (x_max >= columns.start)]
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
        ids: (masks,) id of each mask, from 1.
        size: (H, W) of the image in pixels.
        columns: of the image, to paint only these; default all.

    Raises:
        DataError: a string is not COCO RLE of an image of that size.
    """
    n_masks = len(texts)
    bits = n_masks.bit_length()
    columns = range(size[1]) if columns is None else columns
    dtype = _smallest_signed((n_masks + 1) * size[0] * size[1])
    edges = _sorted_edges(*from_coco_strings(texts, dtype), size, bits, columns)
    rank = (edges & ((1 << bits) - 1)).astype(np.min_scalar_type(n_masks))
    top = _top_after_each(rank, n_masks)
    # Many edges lie below another mask. Of several edges at one pixel only the last one decides.
    visible = np.flatnonzero(_changes(top) | (rank == n_masks))
    position, top = edges[visible] >> bits, top[visible]
    last = np.flatnonzero(np.append(position[1:] != position[:-1], True)[: len(position)])
    position, top = position[last], top[last]
    # A run begins where the mask on top changes, and in the first row of each column.
    row = position - position // max(size[0], 1) * size[0]
    run_starts = np.flatnonzero(_changes(top) | (row == 0))
    row, id_of_top = row[run_starts], np.append(0, np.asarray(ids, dtype=np.int64))
    return PaintedRuns(
        size,
        columns,
        np.append(np.flatnonzero(row == 0), len(row)).astype(np.int32),
        row.astype(_smallest_for_opencv(size[0])),
        id_of_top.astype(_smallest_for_opencv(int(id_of_top.max())))[top[run_starts]],
    )


def _smallest_for_opencv(maximum: int) -> type[np.integer]:
    """Return the smallest integer type for values up to `maximum` that OpenCV supports."""
    fitting = (t for t in (np.uint8, np.uint16) if maximum <= np.iinfo(t).max)
    return next(fitting, np.int32)


def _smallest_signed(maximum: int) -> type[np.signedinteger]:
    """Return int32 or int64: more of the shorter integers fit a processor's caches."""
    return np.int32 if maximum <= np.iinfo(np.int32).max else np.int64


def _changes(values: Indices) -> NDArray[np.bool_]:
    """Return whether each value differs from the previous one; the first one always does."""
    return np.append(True, values[1:] != values[:-1])[: len(values)]


def _sorted_edges(
    counts: Counts, starts: Indices, size: tuple[int, int], bits: int, columns: range
) -> NDArray[np.signedinteger]:
    """Return the sorted edges of all masks: the position, and in the low `bits` the mask's rank.

    Positions count from the first of `columns`. A mask that is open there gets an edge there. The first
    pixel of each column also gets an edge, with the rank after the last mask, which belongs to no
    mask. Position and rank share one integer because sorting plain integers is several times as fast
    as sorting indices.
    """
    height, n_masks = size[0], len(starts) - 1
    ends, begin = _run_ends(counts, starts, size), columns.start * height
    # The positions of each mask begin where those of the previous mask end, so that they ascend.
    offsets = np.arange(n_masks) * (height * size[1]) + begin
    first = np.maximum(np.searchsorted(ends, offsets), starts[:-1])
    last = np.searchsorted(ends, offsets + len(columns) * height)
    parts = [ends[a:b] for a, b in zip(first.tolist(), last.tolist(), strict=True)]
    n_edges = np.maximum(last - first, 0)
    dtype = _smallest_signed((len(columns) * height << bits) + n_masks)
    inside = np.concatenate([*parts, ends[:0]])
    inside -= np.repeat(offsets.astype(ends.dtype), n_edges)
    inside = inside.astype(dtype) << dtype(bits)
    inside |= np.repeat(np.arange(n_masks, dtype=dtype), n_edges)
    # After an odd number of runs the mask is open at the first position.
    open_at_first = np.flatnonzero((first - starts[:-1]) % 2).astype(dtype)
    column_starts = np.arange(len(columns), dtype=dtype) * dtype(height)
    column_edges = (column_starts << dtype(bits)) + dtype(n_masks)
    edges = np.concatenate([open_at_first, inside, column_edges])
    edges.sort()
    return edges


def _run_ends(counts: Counts, starts: Indices, size: tuple[int, int]) -> Counts:
    """Return the number of pixels up to the end of each run, over all masks one after the other.

    Raises:
        DataError: the runs of a mask are not those of an image of this size.
    """
    n_pixels, n_masks = size[0] * size[1], len(starts) - 1
    ends = np.cumsum(counts, dtype=counts.dtype)
    all_have_runs = (np.diff(starts) > 0).all()
    fits = all_have_runs and (ends[starts[1:] - 1] == n_pixels * np.arange(1, n_masks + 1)).all()
    if not fits or not 0 <= counts.min(initial=0) <= counts.max(initial=0) <= n_pixels:
        raise DataError(
            f"a mask's runs do not sum to the {n_pixels} pixels of an image of size {size}; "
            "height, width and counts must be of the same mask; check the rows"
        )
    return ends


def _top_after_each(rank: Indices, n_masks: int) -> Indices:
    """Return 1 + the highest rank that is open after each edge, or 0 if none is.

    An edge opens its mask or closes it, in turn. The set of open masks is therefore a running exclusive
    or of bits, with 63 masks in each set.
    """
    index = rank.astype(np.intp)  # `take` is twice as fast with it
    highest_set = np.zeros(len(rank), dtype=np.int64)
    lowest_rank_in_set = np.zeros(len(rank), dtype=rank.dtype)
    for lowest in range(0, n_masks, _BITS):
        n_in_set = min(_BITS, n_masks - lowest)
        bits = np.zeros(n_masks + 1, dtype=np.int64)  # ranks of other sets change nothing
        bits[lowest : lowest + n_in_set] = np.left_shift(1, np.arange(n_in_set))
        open_masks = np.bitwise_xor.accumulate(bits.take(index))
        any_open = open_masks > 0
        np.copyto(highest_set, open_masks, where=any_open)
        np.copyto(lowest_rank_in_set, rank.dtype.type(lowest), where=any_open)
    return _highest_bit(highest_set, rank.dtype) + lowest_rank_in_set


def _highest_bit(sets: NDArray[np.int64], dtype: np.dtype) -> Indices:
    """Return 1 + the index of the highest bit, or 0 if none is set: the exponent as a float64.

    The bit below the highest one is cleared, so that rounding cannot reach the next power of two.
    """
    exponent = (sets & ~(sets >> 1)).astype(np.float64).view(np.int64) >> 52
    return _BIT_OF_EXPONENT.astype(dtype).take(exponent)
