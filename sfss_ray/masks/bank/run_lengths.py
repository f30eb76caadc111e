"""COCO run-length encoding in numpy: masks to runs, runs to strings and back.

A mask of height H and width W is read column by column (position = x * H + y). Its `counts` are the
lengths of alternating runs, starting with background; a mask that has its first pixel set starts
with a 0. The string form is pycocotools': from the fourth count on the difference to the count two
places before, each as 5-bit groups, least significant first, 32 = "more follow", plus 48 to be
printable (rleToString and rleFrString in cocoapi/common/maskApi.c). All functions work on all masks
of an image at once, because a Python loop over runs or characters would dominate.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sfss_ray.errors import ConfigError, DataError

_GROUP_BITS = 5
_MORE = 32
_FIRST_CHARACTER = 48
_MOST_GROUPS = 7  # 35 bits with sign: more than any difference of two counts below 2**32
_SIGN = 16  # the highest bit of a number's last group
_SIGNED = (np.arange(_MORE, dtype=np.int64) ^ _SIGN) - _SIGN

Counts = NDArray[np.signedinteger]


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
    separate = region_h < height
    edges = _edges_of_separate_columns(columns) if separate else _edges(columns.reshape(-1))
    return counts_from_edges(edges, region_h, origin, size)


def counts_from_edges(
    edges: NDArray[np.int64], region_height: int, origin: tuple[int, int], size: tuple[int, ...]
) -> Counts:
    """Run lengths of a mask from the places where a region's pixels change, column by column.

    Args:
        edges: int64 places, growing, where a pixel differs from the one before; background surrounds
            the region. In a region lower than the image a background pixel is counted after each
            column.
        region_height: pixels in a column of the region.
        origin: (y, x) of the region's first pixel in the image.
        size: (H, W) of the image.
    """
    (y0, x0), (height, width) = origin, size
    if region_height < height:
        column, row = np.divmod(edges, region_height + 1)
        edges = (x0 + column) * height + y0 + row
    else:
        edges = edges + x0 * height
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
    return from_coco_strings([text])[0]


def from_coco_strings(
    texts: Sequence[str], kind: type[np.signedinteger] = np.int64
) -> tuple[Counts, NDArray[np.int64]]:
    """Counts of many masks in one pass.

    Args:
        texts: a string for each mask.
        kind: of the counts. int32 is faster and right for images of fewer than 2**31 pixels; what does
            not fit wraps around.

    Returns:
        All counts one after the other, and where each mask's begin (int64, one entry more than masks:
        the last is the number of counts).

    Raises:
        DataError: as from_coco_string.
    """
    if not texts:
        return np.zeros(0, dtype=kind), np.zeros(1, dtype=np.int64)
    group = np.frombuffer("".join(texts).encode("utf-8"), dtype=np.uint8) - _FIRST_CHARACTER
    more = group >= _MORE
    # Few characters are not the last of their number: to list them is cheaper than to list the others.
    unfinished = np.flatnonzero(more)
    number = unfinished - np.arange(len(unfinished))  # that each belongs to
    text_ends = np.cumsum([len(text) for text in texts])
    # Characters below the first one wrap around to large groups.
    allowed = int(group.max(initial=0)) < 2 * _MORE
    allowed &= not (number[_MOST_GROUPS - 1 :] == number[: 1 - _MOST_GROUPS]).any()
    if not allowed or more[text_ends[text_ends > 0] - 1].any():
        raise DataError(
            f"not a COCO RLE string (one of {len(texts)}, the first begins {texts[0][:40]!r}); "
            "allowed are whole numbers of characters '0' to 'o' as pycocotools writes them; "
            "check that the column holds 'counts' of compressed RLE"
        )
    starts = np.append(0, text_ends - np.searchsorted(unfinished, text_ends))
    values = _SIGNED.astype(kind).take(group.take(np.flatnonzero(~more)).astype(np.intp))
    _take_in(values, number, group[unfinished])
    return _undo_differences(values, starts), starts


def _take_in(values: Counts, number: Counts, group: NDArray[np.uint8]) -> None:
    """Give `values`, that have their last 5 bits so far, the groups that come before these.

    Args:
        values: a signed number of its last group alone.
        number: (n,) growing, the place in `values` that each group belongs to.
        group: (n,) groups, least significant first.
    """
    if not len(number):
        return
    first = np.flatnonzero(np.append(True, number[1:] != number[:-1]))
    groups = np.diff(first, append=len(number))
    place = np.arange(len(number)) - np.repeat(first, groups)
    bits = (group & (_MORE - 1)).astype(np.int64) << (_GROUP_BITS * place)
    longer = number[first]
    values[longer] = (values[longer] << (_GROUP_BITS * groups)) + np.add.reduceat(bits, first)


def _undo_differences(values: Counts, starts: NDArray[np.int64]) -> Counts:
    """counts[i] = value[i] + counts[i - 2] for i > 2, for all masks of `starts`.

    So the odd places are running sums from place 1 and the even ones from place 2; place 0 stands
    alone. Each second value is summed over all masks at once; what the sums had reached before a
    mask's place 1 or 2 is taken off all of its counts.
    """
    kind = values.dtype
    sums = np.concatenate([np.zeros(2, kind), values])  # the sum at value i is at i + 2
    lengths, firsts = np.diff(starts), starts[:-1]
    for chain in (sums[0::2], sums[1::2]):
        np.cumsum(chain, dtype=kind, out=chain)
    before_odd, before_even = sums[firsts + 1], sums[np.minimum(firsts + 2, len(sums) - 1)]
    counts = sums[2:]
    for parity in (0, 1):
        even = firsts % 2 == parity  # masks whose even places lie in this chain
        in_chain = (lengths + even) // 2
        counts[parity::2] -= np.repeat(np.where(even, before_even, before_odd), in_chain)
    some = firsts[lengths > 0]
    counts[some] = values[some]
    return counts


def _starts(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.append(0, np.cumsum(lengths)).astype(np.int64)


def _place_in_mask(starts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.arange(starts[-1]) - np.repeat(starts[:-1], np.diff(starts))
