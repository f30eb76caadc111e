"""Records of the shards' `masks` column, from run lengths and the attributes that a file states.

Area and box are computed from the mask itself, so that an edited number cannot hide a mask. Scores
and prompts are NaN where a file has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfss_ray.errors import DataError
from sfss_ray.masks.bank.run_lengths import Counts

NAN = float("nan")
_MAX_SIDE = 2**31  # shards store sides as int32


@dataclass(frozen=True)
class MaskAttributes:
    """The attributes of a mask that cannot be computed from its pixels."""

    scores: Sequence[float] = (NAN, NAN)
    """predicted_iou and stability_score."""
    point: Sequence[float] = (NAN, NAN)
    """x and y of the prompt."""
    crop_box: Sequence[float] | None = None
    """x, y, width, height; None: the whole image."""


def attributes_of(entry: Mapping[str, Any]) -> MaskAttributes:
    """Return the attributes of a mask in a JSON file, under the names that SAM gives them.

    Where `predicted_iou` is missing, `score` or `confidence` of a detector takes its place. A missing
    number and null are NaN.

    Raises:
        TypeError, ValueError, LookupError: an attribute has another form.
    """
    names = ("predicted_iou", "score", "confidence")
    quality = next((entry[name] for name in names if entry.get(name) is not None), None)
    points = entry.get("point_coords")
    crop_box = entry.get("crop_box")
    return MaskAttributes(
        (_number(quality), _number(entry.get("stability_score"))),
        (NAN, NAN) if points is None else [_number(number) for number in points[0]],
        None if crop_box is None else [float(number) for number in crop_box],
    )


def _number(value: Any) -> float:
    return NAN if value is None else float(value)


def mask_record(
    counts: Counts, text: str, size: tuple[int, int], attributes: MaskAttributes
) -> dict[str, Any]:
    """Return a record of the `masks` column.

    Args:
        counts: run lengths of the mask, column by column.
        text: the same as a COCO string.
        size: (height, width) of the image in pixels.
        attributes: of the mask.

    Raises:
        ValueError: a number is infinite, a point has not 2 numbers, or a crop box is none of an image.
    """
    point = attributes.point
    crop_box = attributes.crop_box or (0, 0, size[1], size[0])
    if (len(point), len(crop_box)) != (2, 4):
        raise ValueError("a point has 2 numbers and a crop box 4")
    if any(map(math.isinf, (*attributes.scores, *point))):
        raise ValueError("a score or a coordinate of its point is infinite")
    if not all(0 <= side < _MAX_SIDE for side in crop_box):
        raise ValueError(f"its crop box is {[*crop_box]}, which lies in no image")
    return {
        "counts": text,
        "area": int(counts[1::2].sum()),
        "bbox": bounding_box(counts, size[0]),
        "predicted_iou": attributes.scores[0],
        "stability_score": attributes.scores[1],
        "point": list(point),
        "crop_box": [int(side) for side in crop_box],
    }


def bounding_box(counts: Counts, height: int) -> list[int]:
    """Return x, y, width, height of a mask in SAM's convention, one less than COCO's.

    Width and height are distances from the first to the last pixel.

    Args:
        counts: run lengths of the mask, column by column.
        height: of the image in pixels.
    """
    ends = np.cumsum(counts)
    begin, end = ends[0::2][: len(ends) // 2], ends[1::2]
    not_empty = end > begin
    begin, last = begin[not_empty], end[not_empty] - 1
    if not len(begin):
        return [0, 0, 0, 0]
    x_min, x_max = begin[0] // height, last[-1] // height
    # A run that continues in the next column contains the last row and the first one.
    spans_columns = (begin // height != last // height).any()
    y_min = 0 if spans_columns else (begin % height).min()
    y_max = height - 1 if spans_columns else (last % height).max()
    return [int(x_min), int(y_min), int(x_max - x_min), int(y_max - y_min)]


def check_size(mask_size: Sequence[Any], size: tuple[int, int]) -> None:
    """Raise a DataError if a mask has not the (height, width) of its image."""
    if not isinstance(mask_size, Sequence) or len(mask_size) != 2:
        raise DataError(f"its size is {str(mask_size)[:40]}: allowed is height and width")
    if tuple(mask_size) != size:
        width_height = "x".join(str(side) for side in reversed(mask_size))
        raise DataError(f"it is {width_height} pixels, its image is {size[1]}x{size[0]}")


def reason_of(error: Exception) -> str:
    """Return the message of an error as a short text on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:120]
