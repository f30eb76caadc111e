"""Output files of segment-anything's scripts/amg.py for one image, read as mask records.

By default amg.py writes a folder with 0.png, 1.png, ... (255 = mask) and metadata.csv with a line for
each mask. With `--convert-to-rle` it writes one JSON file, a list of records whose segmentation is COCO
RLE. Area and box are computed from the masks themselves, so that an edited table cannot hide a mask.
"""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sfss_ray.errors import DataError
from sfss_ray.masks.bank.run_lengths import Counts, encode_masks, from_coco_string, to_coco_string
from sfss_ray.storage.text import read_text

METADATA = "metadata.csv"
_SCORES = ("predicted_iou", "stability_score")
_POINT = ("point_input_x", "point_input_y")
_CROP = ("crop_box_x0", "crop_box_y0", "crop_box_w", "crop_box_h")
COLUMNS = ("id", *_SCORES, *_POINT, *_CROP)
"""Columns of metadata.csv that are read; amg.py also writes area and bbox_*."""
KEYS = ("segmentation", *_SCORES, "point_coords", "crop_box")
"""Keys of a JSON record that are read; amg.py also writes area and bbox."""
_MAX_SIDE = 2**31  # shards store sides as int32
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class _Attributes:
    """The attributes of a mask that cannot be computed from its pixels."""

    scores: Sequence[float]
    """predicted_iou and stability_score."""
    point: Sequence[float]
    """x and y of the prompt."""
    crop_box: Sequence[float]
    """x, y, width, height."""


def read_masks(source: Path, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return the mask records of an image, in amg.py's order.

    Args:
        source: the image's folder of PNG files, or its JSON file.
        size: (height, width) of the image in pixels, which every mask must have.

    Raises:
        DataError: a file is missing, damaged or of another form; names the file and the reason.
    """
    return _read_json(source, size) if source.is_file() else _read_folder(source, size)


def _read_folder(folder: Path, size: tuple[int, int]) -> list[dict[str, Any]]:
    lines = _read_table(folder / METADATA)
    file_ids = {path.stem for path in folder.glob("*.png")}
    table_ids = [line["id"] or "" for line in lines]
    unmatched = sorted(file_ids.symmetric_difference(table_ids))
    if unmatched or len(table_ids) != len(file_ids):
        raise DataError(
            f"{str(folder)!r} contains {len(file_ids)} PNG files and {METADATA} lists"
            f" {len(table_ids)} ids (first that differs: {(unmatched or ['one id twice'])[0]!r}):"
            " each file needs one line"
        )
    return [_record_of_png(folder / f"{line['id']}.png", line, size) for line in lines]


def _read_table(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            lines, columns = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{str(path)!r} cannot be read ({_reason(error)})") from error
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise DataError(f"{str(path)!r} has no column {missing[0]!r}; amg.py writes it")
    return lines


def _record_of_png(path: Path, line: Mapping[str, str], size: tuple[int, int]) -> dict[str, Any]:
    counts = _encode(_read_png(path), path, size)
    try:
        attributes = _Attributes(
            *([float(line[name]) for name in names] for names in (_SCORES, _POINT, _CROP))
        )
        return _record(counts, to_coco_string(counts), size[0], attributes)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{str(path.with_name(METADATA))!r}: the line of id {line['id']!r} has an invalid number"
            f" ({_reason(error)})"
        ) from error


def _read_png(path: Path) -> np.ndarray:
    """Return the pixels of a mask, uint8 (H, W) of 0 and 255."""
    try:
        data = path.read_bytes()
        # OpenCV releases Python's lock while it decodes, but it accepts truncated files.
        complete = np.frombuffer(data, np.uint8) if _is_whole_png(data) else None
        pixels = None if complete is None else cv2.imdecode(complete, cv2.IMREAD_GRAYSCALE)
    except (OSError, cv2.error) as error:
        raise DataError(f"mask {str(path)!r} cannot be read ({_reason(error)})") from error
    if pixels is None:
        raise DataError(f"mask {str(path)!r} is not a PNG file, or damaged")
    if ((pixels != 0) & (pixels != 255)).any():
        raise DataError(f"mask {str(path)!r} contains other values than 0 and 255 (255 = mask)")
    return pixels


def _is_whole_png(data: bytes) -> bool:
    """Return whether all chunks up to the end chunk are present with a correct checksum."""
    start = len(_PNG_SIGNATURE)
    if not data.startswith(_PNG_SIGNATURE):
        return False
    while start + 12 <= len(data):
        length = int.from_bytes(data[start : start + 4], "big")
        end = start + 8 + length
        if zlib.crc32(data[start + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        if data[start + 4 : start + 8] == b"IEND":
            return True
        start = end + 4
    return False


def _encode(pixels: np.ndarray, path: Path, size: tuple[int, int]) -> Counts:
    try:
        _check_size(pixels.shape, size)
    except DataError as error:
        raise DataError(f"mask {str(path)!r}: {error}") from error
    x, y, width, height = cv2.boundingRect(pixels)
    region = np.asfortranarray(pixels[y : y + height, x : x + width] > 0)
    return encode_masks([region], [(y, x)], size)[0]


def _read_json(path: Path, size: tuple[int, int]) -> list[dict[str, Any]]:
    try:
        records = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} cannot be read as JSON ({_reason(error)})") from error
    if not isinstance(records, list):
        raise DataError(
            f"{str(path)!r} does not contain a list of masks: amg.py --convert-to-rle writes one"
        )
    return [_record_of_json(r, f"{str(path)!r}: mask {k}", size) for k, r in enumerate(records)]


def _record_of_json(record: Any, name: str, size: tuple[int, int]) -> dict[str, Any]:
    """Convert a JSON record; `name` is that of the mask in errors."""
    missing = [key for key in KEYS if not isinstance(record, dict) or key not in record]
    if missing:
        raise DataError(f"{name} has no {missing[0]!r}; amg.py --convert-to-rle writes it")
    try:
        rle = record["segmentation"]
        _check_size(rle["size"], size)
        text = rle["counts"] if isinstance(rle["counts"], str) else to_coco_string(rle["counts"])
        counts = from_coco_string(text)
        attributes = _Attributes(
            [float(record[score]) for score in _SCORES],
            [float(number) for number in record["point_coords"][0]],
            [float(number) for number in record["crop_box"]],
        )
        if counts.sum() != size[0] * size[1] or (counts < 0).any():
            raise DataError(f"its runs cover {counts.sum()} pixels, not {size[0] * size[1]}")
        return _record(counts, text, size[0], attributes)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise DataError(f"{name} is not a record of amg.py ({_reason(error)})") from error


def _check_size(mask_size: Sequence[Any], size: tuple[int, int]) -> None:
    if tuple(mask_size) != size:
        width_height = "x".join(str(side) for side in reversed(mask_size))
        raise DataError(f"it is {width_height} pixels, its image is {size[1]}x{size[0]}")


def _record(counts: Counts, text: str, height: int, attributes: _Attributes) -> dict[str, Any]:
    """Return a record of the `masks` column for run lengths and their COCO string."""
    point, crop_box = attributes.point, attributes.crop_box
    if (len(point), len(crop_box)) != (2, 4):
        raise ValueError("a point has 2 numbers and a crop box 4")
    if not all(0 <= side < _MAX_SIDE for side in crop_box):
        raise ValueError(f"its crop box is {[*crop_box]}, which lies in no image")
    return {
        "counts": text,
        "area": int(counts[1::2].sum()),
        "bbox": bounding_box(counts, height),
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


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:120]
