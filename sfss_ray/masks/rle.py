"""COCO run-length encoding in numpy: masks to runs, runs to strings, strings to an id map.

A mask of height H and width W is read column by column (position = x * H + y). Its `counts` are the
lengths of alternating runs, starting with background; a mask that has its first pixel set starts
with a 0. The string form is pycocotools': from the fourth count on the difference to the count two
places before, each as 5-bit groups, least significant first, 32 = "more follow", plus 48 to be
printable (rleToString and rleFrString in cocoapi/common/maskApi.c). All functions work on all masks
of an image at once, because a Python loop over runs or characters would dominate.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfss_ray.errors import ConfigError, DataError

_GROUP_BITS = 5
_MORE = 32
_FIRST_CHARACTER = 48
_MOST_GROUPS = 7  # 35 bits with sign: more than any difference of two counts below 2**32
_PAINTINGS = ("fine", "coarse")

Counts = NDArray[np.int64]


def encode_masks(
    masks: Sequence[NDArray[np.bool_]],
    origins: Sequence[tuple[int, int]] | None = None,
    size: tuple[int, int] | None = None,
) -> list[Counts]:
    """Run lengths of masks given whole or as a region of the image.

    Args:
        masks: boolean arrays (h, w), not necessarily of one shape; column-major ones are fastest.
        origins: (y, x) of each array's first pixel in the image, default (0, 0) for all.
        size: (H, W) of the image in pixels, default the shape of each array.

    Returns:
        One int64 array of counts for each mask; they sum to H * W.

    Raises:
        ConfigError: a region does not lie inside the image, or the image has no pixels.
    """
    origins = [(0, 0)] * len(masks) if origins is None else origins
    if len(origins) != len(masks):
        raise ConfigError(
            f"{len(masks)} masks but {len(origins)} origins; give one (y, x) for each mask, or None"
        )
    return [
        _encode_region(mask, origin, mask.shape if size is None else size)
        for mask, origin in zip(masks, origins, strict=True)
    ]


def _encode_region(
    mask: NDArray[np.bool_], origin: tuple[int, int], size: tuple[int, ...]
) -> Counts:
    (region_h, region_w), (y0, x0), (height, width) = mask.shape, origin, size
    inside = 0 <= y0 <= height - region_h and 0 <= x0 <= width - region_w
    if not inside or height * width == 0:
        raise ConfigError(
            f"a mask of shape {mask.shape} at (y, x) = {origin} does not fit an image of size "
            f"{tuple(size)}; origin and shape must stay inside an image of at least one pixel"
        )
    columns = np.asarray(mask, dtype=bool).T
    if region_h < height:
        edges = _edges_of_separate_columns(columns)
        column, row = np.divmod(edges, region_h + 1)
        edges = (x0 + column) * height + y0 + row
    else:
        edges = _edges(columns.reshape(-1)) + x0 * height
    counts = np.diff(edges, prepend=0, append=height * width)
    # Runs that reach the last pixel have their end there: no empty background run follows.
    return counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts


def _edges_of_separate_columns(columns: NDArray[np.bool_]) -> Counts:
    """Edges when at least one pixel outside the region lies between two of its columns.

    A background pixel is appended to each column, so that no run goes on into the next one.
    """
    n_columns, region_h = columns.shape
    padded = np.zeros((n_columns, region_h + 1), dtype=bool)
    padded[:, :region_h] = columns
    return _edges(padded.reshape(-1))


def _edges(flat: NDArray[np.bool_]) -> Counts:
    """Positions where a value differs from the one before; background surrounds the array."""
    changed = np.empty(len(flat) + 1, dtype=bool)
    changed[0], changed[-1] = flat[:1].any(), flat[-1:].any()
    np.not_equal(flat[1:], flat[:-1], out=changed[1:-1])
    return np.flatnonzero(changed)


def decode(counts: Sequence[int] | Counts, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Boolean mask (H, W), a column-major view, from its run lengths.

    Raises:
        DataError: the counts do not sum to H * W.
    """
    lengths = np.asarray(counts, dtype=np.int64)
    if lengths.sum() != size[0] * size[1] or (lengths < 0).any():
        raise DataError(
            f"counts sum to {lengths.sum()}, but an image of size {tuple(size)} has "
            f"{size[0] * size[1]} pixels; give the counts and the size of the same mask"
        )
    foreground = np.arange(len(lengths)) % 2 == 1
    return np.repeat(foreground, lengths).reshape(size[1], size[0]).T


def area(counts: Sequence[int] | Counts) -> int:
    """Number of foreground pixels: every second run, starting with the second."""
    return int(np.asarray(counts, dtype=np.int64)[1::2].sum())


def to_coco_string(counts: Sequence[int] | Counts) -> str:
    """COCO's compressed string of one mask, equal to pycocotools' bytes."""
    return to_coco_strings([counts])[0]


def to_coco_strings(masks: Sequence[Sequence[int] | Counts]) -> list[str]:
    """COCO's compressed strings of many masks in one pass; one str for each array of counts."""
    if not masks:
        return []
    starts = _starts([len(counts) for counts in masks])
    flat = np.concatenate([np.asarray(counts, dtype=np.int64) for counts in masks])
    values = flat.copy()
    delayed = _place_in_mask(starts) > 2
    values[delayed] -= flat[np.flatnonzero(delayed) - 2]
    groups = _groups_needed(values)
    text = _characters(values, groups).tobytes().decode("ascii")
    ends = np.append(0, np.cumsum(groups))[starts]
    return [text[a:b] for a, b in pairwise(ends.tolist())]


def _groups_needed(values: Counts) -> NDArray[np.int64]:
    """Smallest k with -2^(5k-1) <= value < 2^(5k-1): k groups hold a two's complement number."""
    magnitude = np.where(values < 0, ~values, values)
    limits = np.left_shift(1, _GROUP_BITS * np.arange(1, _MOST_GROUPS) - 1, dtype=np.int64)
    return 1 + np.searchsorted(limits, magnitude, side="right")


def _characters(values: Counts, groups: NDArray[np.int64]) -> NDArray[np.uint8]:
    place = np.arange(int(groups.max(initial=1)))
    digits = (values[:, None] >> (_GROUP_BITS * place)) & (_MORE - 1)
    digits += np.where(place < groups[:, None] - 1, _MORE, 0) + _FIRST_CHARACTER
    return digits[place < groups[:, None]].astype(np.uint8)


def from_coco_string(text: str) -> Counts:
    """Counts (int64) of one mask from COCO's compressed string.

    Raises:
        DataError: a character outside chr(48)..chr(111), or the string stops inside a number.
    """
    return _parse([text])[0]


def _parse(texts: Sequence[str]) -> tuple[Counts, NDArray[np.int64]]:
    """All counts one after the other, and where each mask starts (one entry more at the end)."""
    code = np.frombuffer("".join(texts).encode("utf-8"), dtype=np.uint8).astype(np.int64)
    code -= _FIRST_CHARACTER
    last = (code & _MORE) == 0
    text_ends = np.cumsum([len(text) for text in texts])
    stops_inside = len(code) > 0 and not last[text_ends[text_ends > 0] - 1].all()
    if stops_inside or ((code < 0) | (code >= 2 * _MORE)).any():
        raise DataError(
            f"not a COCO RLE string (one of {len(texts)}, the first begins {texts[0][:40]!r}); "
            "allowed are whole numbers of characters '0' to 'o' as pycocotools writes them; "
            "check that the column holds 'counts' of compressed RLE"
        )
    number_ends = np.flatnonzero(last) + 1
    values = _numbers(code, number_ends)
    starts = np.append(0, np.searchsorted(number_ends, text_ends, side="right"))
    return _undo_differences(values, starts), starts


def _numbers(code: Counts, ends: NDArray[np.int64]) -> Counts:
    """Signed numbers from their 5-bit groups; bit 16 of the last group is the sign."""
    lengths = np.diff(ends, prepend=0)
    begins = ends - lengths
    values = code[begins] & (_MORE - 1)
    for place in range(1, int(lengths.max(initial=0))):
        has = np.flatnonzero(lengths > place)
        values[has] |= (code[begins[has] + place] & (_MORE - 1)) << (_GROUP_BITS * place)
    negative = (code[ends - 1] & (_MORE >> 1)) != 0
    values[negative] -= np.left_shift(1, _GROUP_BITS * lengths[negative], dtype=np.int64)
    return values


def _undo_differences(values: Counts, starts: NDArray[np.int64]) -> Counts:
    """counts[i] = value[i] + counts[i - 2] for i > 2, for all masks of `starts`.

    So the odd places are running sums from place 1 and the even ones from place 2; place 0 stands
    alone. Each is one cumsum over all masks, less what it had reached where the mask starts.
    """
    place = _place_in_mask(starts)
    mask_of = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    counts = values.copy()
    for chain in ((place % 2 == 1), (place % 2 == 0) & (place > 0)):
        sums = np.cumsum(np.where(chain, values, 0))
        before = np.append(0, sums)[starts[:-1]]
        counts[chain] = (sums - before[mask_of])[chain]
    return counts


def _starts(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.append(0, np.cumsum(lengths)).astype(np.int64)


def _place_in_mask(starts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.arange(starts[-1]) - np.repeat(starts[:-1], np.diff(starts))


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
    window: tuple[int, int, int, int] | None = None,
    image_size: tuple[int, int] | None = None,
) -> NDArray[np.int32]:
    """Id map of a window of the image, without decoding any mask outside of it.

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
    y0, x0, h, w = _checked_window(window, size)
    seen = [int(k) for k in order if _bbox_meets(rles[int(k)]["bbox"], (y0, x0, h, w))]
    if not seen or size is None or h * w == 0:
        return np.zeros((h, w), dtype=np.int32)
    counts, starts = _parse([rles[k]["counts"] for k in seen])
    pieces = _pieces_in_window(counts, starts, size, (y0, x0, h, w))
    top = _paint_pieces(h * w, *pieces)
    id_of_top = np.append(0, np.asarray(seen) + 1).astype(np.int32)
    return id_of_top.take(top.reshape(w, h).T)


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


def _checked_window(
    window: tuple[int, int, int, int] | None, size: tuple[int, int] | None
) -> tuple[int, int, int, int]:
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


def _bbox_meets(bbox: Sequence[float], window: tuple[int, int, int, int]) -> bool:
    """Whether box and window overlap; the right and lower edge count as inside."""
    x, y, box_w, box_h = bbox
    y0, x0, h, w = window
    return x < x0 + w and x + box_w >= x0 and y < y0 + h and y + box_h >= y0


def _pieces_in_window(
    counts: Counts,
    starts: NDArray[np.int64],
    size: tuple[int, int],
    window: tuple[int, int, int, int],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Foreground runs cut into pieces of one window column each.

    Returns mask rank, start (position in the column-major window) and length of each piece, in the
    order of the masks.
    """
    rank, begin, end = _runs_in_columns(counts, starts, size, window)
    (y0, x0, h, _), height = window, size[0]
    first, last = begin // height, (end - 1) // height
    n_columns = last - first + 1
    run = np.repeat(np.arange(len(begin)), n_columns)
    column = first[run] + _place_in_mask(_starts(n_columns))
    top = np.maximum(begin[run] - column * height, y0)
    bottom = np.minimum(end[run] - column * height, y0 + h)
    visible = top < bottom
    position = (column - x0) * h + top - y0
    return rank[run][visible], position[visible], (bottom - top)[visible]


def _runs_in_columns(
    counts: Counts,
    starts: NDArray[np.int64],
    size: tuple[int, int],
    window: tuple[int, int, int, int],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rank, begin and end (image positions) of the foreground runs, clipped to the columns.

    With ends shifted by rank * pixels all masks lie on one growing line, so that one searchsorted
    finds the first and the last run of every mask in the wanted columns.
    """
    height, pixels = size[0], size[0] * size[1]
    ends = np.cumsum(counts)
    ranks = np.arange(len(starts) - 1)
    if (counts < 0).any() or (np.append(0, ends)[starts[1:]] != (ranks + 1) * pixels).any():
        raise DataError(
            f"a mask's runs do not sum to the {pixels} pixels of an image of size {size}; "
            "height, width and counts must be of the same mask; check the rows"
        )
    left, right = window[1] * height, (window[1] + window[3]) * height
    first = np.searchsorted(ends, ranks * pixels + left, side="right")
    stop = np.searchsorted(ends, ranks * pixels + right, side="left") + 1
    n_runs = np.maximum(np.minimum(stop, starts[1:]) - first, 0)
    rank = np.repeat(ranks, n_runs)
    index = first[rank] + _place_in_mask(_starts(n_runs))
    foreground = (index - starts[rank]) % 2 == 1
    rank, index = rank[foreground], index[foreground]
    end = ends[index] - rank * pixels
    begin, end = np.maximum(end - counts[index], left), np.minimum(end, right)
    some = begin < end
    return rank[some], begin[some], end[some]


def _paint_pieces(
    n_pixels: int,
    rank: NDArray[np.int64],
    position: NDArray[np.int64],
    length: NDArray[np.int64],
) -> NDArray[np.int32]:
    """1 + rank of the topmost piece over each of n_pixels, 0 where there is none.

    Time hardly depends on how much the pieces cover each other. A piece of length n is the union of
    two blocks of 2^k <= n pixels, one at its start and one at its end. So each piece is written
    twice, at its blocks' first pixels on level k; then, from the largest blocks down, each block
    hands its rank to its two halves, the greater rank wins. Pieces are in the order of their ranks,
    and numpy leaves the last value where an index is repeated in an assignment.
    """
    level = np.frexp(length.astype(np.float64))[1] - 1  # floor(log2(length)), exactly
    kind = np.uint16 if int(rank.max(initial=0)) < np.iinfo(np.uint16).max else np.int32
    value = (rank + 1).astype(kind)
    top = np.zeros(n_pixels, dtype=kind)
    for k in range(int(level.max(initial=0)), -1, -1):
        here = np.flatnonzero(level == k)
        start = position[here]
        _raise_to(top, start, value[here])
        _raise_to(top, start + length[here] - (1 << k), value[here])
        if k:
            half = 1 << (k - 1)
            halves = top.copy()
            np.maximum(halves[half:], top[:-half], out=halves[half:])
            top = halves
    return top.astype(np.int32)


def _raise_to(
    top: NDArray[np.generic], index: NDArray[np.int64], value: NDArray[np.generic]
) -> None:
    """top[index] = the greater of both; `value` grows, so of a repeated index the last one holds."""
    top[index] = np.maximum(top[index], value)
