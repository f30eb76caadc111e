"""COCO run-length encoding in numpy: masks to runs, runs to strings and back.

A mask of height H and width W is read column by column (position = x * H + y). Its `counts` are the
lengths of alternating runs, starting with background. If the first pixel is set, the first count is 0.

The string form is that of pycocotools (rleToString and rleFrString in cocoapi/common/maskApi.c). From
the fourth count on, each number is the difference to the count two positions earlier. Numbers are
written as 5-bit groups, least significant first, with 32 for "more follow" and plus 48 to be printable.

All functions process all masks of an image at once, because a Python loop over runs or characters
would dominate their time.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sfss_ray.errors import ConfigError, DataError

_GROUP_BITS = 5
_MORE = 32
_FIRST_CHARACTER = 48
_MAX_GROUPS = 7  # 35 bits with sign: enough for any difference of two counts below 2**32
_SIGN = 16  # the highest bit of a number's last group
_SIGNED = (np.arange(_MORE, dtype=np.int64) ^ _SIGN) - _SIGN

Counts = NDArray[np.signedinteger]


def encode_masks(
    masks: Sequence[NDArray[np.bool_]],
    origins: Sequence[tuple[int, int]] | None = None,
    size: tuple[int, int] | None = None,
) -> list[Counts]:
    """Return the run lengths of masks given whole or as a region of the image.

    Args:
        masks: boolean arrays (h, w), possibly of different shapes; column-major arrays are fastest.
        origins: (y, x) of each array's first pixel in the image, default (0, 0) for all.
        size: (H, W) of the image in pixels, default the shape of each array.

    Returns:
        One int64 array of counts for each mask; its sum is H * W.

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
    (region_height, region_width), (y0, x0), (height, width) = mask.shape, origin, size
    is_inside = 0 <= y0 <= height - region_height and 0 <= x0 <= width - region_width
    if not is_inside or height * width == 0:
        raise ConfigError(
            f"a mask of shape {mask.shape} at (y, x) = {origin} does not fit an image of size "
            f"{tuple(size)}; origin and shape must stay inside an image of at least one pixel"
        )
    columns = np.asarray(mask, dtype=bool).T
    separate = region_height < height
    edges = _edges_of_separate_columns(columns) if separate else _edges(columns.reshape(-1))
    return counts_from_edges(edges, region_height, origin, size)


def counts_from_edges(
    edges: NDArray[np.int64], region_height: int, origin: tuple[int, int], size: tuple[int, ...]
) -> Counts:
    """Return the run lengths of a mask from the positions where a region's pixels change.

    Args:
        edges: int64, ascending positions (column by column) of pixels that differ from the previous
            pixel. Background surrounds the region. If the region is lower than the image, positions
            count one extra background pixel after each column.
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
    # A run that reaches the last pixel is not followed by an empty background run.
    return counts[:-1] if len(counts) > 1 and counts[-1] == 0 else counts


def _edges_of_separate_columns(columns: NDArray[np.bool_]) -> Counts:
    """Return the edges of a region that is lower than the image.

    A background pixel is appended to each column, so that no run continues in the next column.
    """
    n_columns, region_height = columns.shape
    padded = np.zeros((n_columns, region_height + 1), dtype=bool)
    padded[:, :region_height] = columns
    return _edges(padded.reshape(-1))


def _edges(flat: NDArray[np.bool_]) -> Counts:
    """Return the positions of values that differ from the previous one, in background."""
    changed = np.empty(len(flat) + 1, dtype=bool)
    changed[0], changed[-1] = flat[:1].any(), flat[-1:].any()
    np.not_equal(flat[1:], flat[:-1], out=changed[1:-1])
    return np.flatnonzero(changed)


def decode(counts: Sequence[int] | Counts, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask of run lengths, bool (H, W), as a column-major view.

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
    """Return the number of foreground pixels: every second count, starting with the second."""
    return int(np.asarray(counts, dtype=np.int64)[1::2].sum())


def to_coco_string(counts: Sequence[int] | Counts) -> str:
    """Return COCO's compressed string of one mask, equal to the bytes of pycocotools."""
    return to_coco_strings([counts])[0]


def to_coco_strings(masks: Sequence[Sequence[int] | Counts]) -> list[str]:
    """Return COCO's compressed strings of many masks, one for each array of counts."""
    if not masks:
        return []
    starts = _starts([len(counts) for counts in masks])
    flat = np.concatenate([np.asarray(counts, dtype=np.int64) for counts in masks])
    numbers = flat.copy()
    is_difference = _index_in_mask(starts) > 2
    numbers[is_difference] -= flat[np.flatnonzero(is_difference) - 2]
    n_groups = _groups_needed(numbers)
    text = _characters(numbers, n_groups).tobytes().decode("ascii")
    text_starts = np.append(0, np.cumsum(n_groups))[starts]
    return [text[a:b] for a, b in pairwise(text_starts.tolist())]


def _groups_needed(numbers: Counts) -> NDArray[np.int64]:
    """Return the smallest k with -2^(5k-1) <= number < 2^(5k-1).

    k groups hold such a number as a two's complement.
    """
    magnitude = np.where(numbers < 0, ~numbers, numbers)
    limits = np.left_shift(1, _GROUP_BITS * np.arange(1, _MAX_GROUPS) - 1, dtype=np.int64)
    return 1 + np.searchsorted(limits, magnitude, side="right")


def _characters(numbers: Counts, n_groups: NDArray[np.int64]) -> NDArray[np.uint8]:
    position = np.arange(int(n_groups.max(initial=1)))
    digits = (numbers[:, None] >> (_GROUP_BITS * position)) & (_MORE - 1)
    digits += np.where(position < n_groups[:, None] - 1, _MORE, 0) + _FIRST_CHARACTER
    return digits[position < n_groups[:, None]].astype(np.uint8)


def from_coco_string(text: str) -> Counts:
    """Return the counts (int64) of one mask from COCO's compressed string.

    Raises:
        DataError: a character lies outside chr(48)..chr(111), or the string ends inside a number.
    """
    return from_coco_strings([text])[0]


def from_coco_strings(
    texts: Sequence[str], dtype: type[np.signedinteger] = np.int64
) -> tuple[Counts, NDArray[np.int64]]:
    """Return the counts of many masks.

    Args:
        texts: a string for each mask.
        dtype: of the counts. int32 is faster and exact for images of fewer than 2**31 pixels. Larger
            numbers wrap around.

    Returns:
        The counts of all masks one after the other, and the start of each mask's counts (int64, one
        entry more than masks; the last is the number of counts).

    Raises:
        DataError: as from_coco_string.
    """
    if not texts:
        return np.zeros(0, dtype=dtype), np.zeros(1, dtype=np.int64)
    group = np.frombuffer("".join(texts).encode("utf-8"), dtype=np.uint8) - _FIRST_CHARACTER
    more = group >= _MORE
    # Few characters are followed by more of their number, so listing these is cheap.
    leading = np.flatnonzero(more)
    number_index = leading - np.arange(len(leading))  # the number that each one belongs to
    text_ends = np.cumsum([len(text) for text in texts])
    # Characters below the first one wrap around to large groups.
    is_valid = int(group.max(initial=0)) < 2 * _MORE
    is_valid &= not (number_index[_MAX_GROUPS - 1 :] == number_index[: 1 - _MAX_GROUPS]).any()
    if not is_valid or more[text_ends[text_ends > 0] - 1].any():
        raise DataError(
            f"not a COCO RLE string (one of {len(texts)}, the first begins {texts[0][:40]!r}); "
            "allowed are whole numbers of characters '0' to 'o' as pycocotools writes them; "
            "check that the column holds 'counts' of compressed RLE"
        )
    starts = np.append(0, text_ends - np.searchsorted(leading, text_ends))
    numbers = _SIGNED.astype(dtype).take(group.take(np.flatnonzero(~more)).astype(np.intp))
    _add_leading_groups(numbers, number_index, group[leading])
    return _undo_differences(numbers, starts), starts


def _add_leading_groups(numbers: Counts, number_index: Counts, group: NDArray[np.uint8]) -> None:
    """Complete `numbers`, which hold their last 5 bits alone, with the groups before these.

    Args:
        numbers: for each number the signed value of its last group.
        number_index: (n,) ascending, the index in `numbers` that each group belongs to.
        group: (n,) groups, least significant first.
    """
    if not len(number_index):
        return
    first = np.flatnonzero(np.append(True, number_index[1:] != number_index[:-1]))
    n_groups = np.diff(first, append=len(number_index))
    position = np.arange(len(number_index)) - np.repeat(first, n_groups)
    bits = (group & (_MORE - 1)).astype(np.int64) << (_GROUP_BITS * position)
    longer = number_index[first]
    numbers[longer] = (numbers[longer] << (_GROUP_BITS * n_groups)) + np.add.reduceat(bits, first)


def _undo_differences(numbers: Counts, starts: NDArray[np.int64]) -> Counts:
    """Return counts[i] = numbers[i] + counts[i - 2] for i > 2, for all masks of `starts`.

    Within a mask, counts at odd indices are running sums from index 1, and counts at even indices are
    running sums from index 2; index 0 stands alone. Every second number is summed over all masks at
    once. Then the sum that precedes a mask's index 1 or 2 is subtracted from all of its counts.
    """
    dtype = numbers.dtype
    sums = np.concatenate([np.zeros(2, dtype), numbers])  # the sum at number i lies at i + 2
    lengths, firsts = np.diff(starts), starts[:-1]
    for chain in (sums[0::2], sums[1::2]):
        np.cumsum(chain, dtype=dtype, out=chain)
    before_odd, before_even = sums[firsts + 1], sums[np.minimum(firsts + 2, len(sums) - 1)]
    counts = sums[2:]
    for parity in (0, 1):
        is_even = firsts % 2 == parity  # masks whose even indices lie in this chain
        n_in_chain = (lengths + is_even) // 2
        counts[parity::2] -= np.repeat(np.where(is_even, before_even, before_odd), n_in_chain)
    first_counts = firsts[lengths > 0]
    counts[first_counts] = numbers[first_counts]
    return counts


def _starts(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.append(0, np.cumsum(lengths)).astype(np.int64)


def _index_in_mask(starts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.arange(starts[-1]) - np.repeat(starts[:-1], np.diff(starts))
