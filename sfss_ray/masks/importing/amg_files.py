"""Files that segment-anything's scripts/amg.py leaves of an image, read as records of the store.

By default a folder with 0.png, 1.png, ... (255 = mask) and metadata.csv, a line per mask; with
`--convert-to-rle` one JSON file, a list of records whose segmentation is COCO RLE. Area and box are
taken from the masks themselves, so that a table that was edited cannot hide a mask.
"""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Mapping, Sequence
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
"""Columns of metadata.csv that are read; amg.py writes area and bbox_* besides."""
KEYS = ("segmentation", *_SCORES, "point_coords", "crop_box")
"""Keys of a JSON record that are read; amg.py writes area and bbox besides."""
_MOST_PIXELS = 2**31  # a side in the store is an int32
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_masks(place: Path, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Mask records of an image from its folder of PNGs or its JSON file, in amg.py's order.

    size: (height, width) of the image in pixels, which every mask must have.

    Raises:
        DataError: a file that is missing, damaged or of another form; names it and the reason.
    """
    return _read_json(place, size) if place.is_file() else _read_folder(place, size)


def _read_folder(folder: Path, size: tuple[int, int]) -> list[dict[str, Any]]:
    lines = _read_table(folder / METADATA)
    names = {path.stem for path in folder.glob("*.png")}
    listed = [line["id"] or "" for line in lines]
    strange = sorted(names.symmetric_difference(listed))
    if strange or len(listed) != len(names):
        raise DataError(
            f"{str(folder)!r} holds {len(names)} PNG files and {METADATA} lists {len(listed)} ids"
            f" (first that differs: {(strange or ['one id twice'])[0]!r}): each file needs its line"
        )
    return [_record_of_png(folder / f"{line['id']}.png", line, size) for line in lines]


def _read_table(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            lines, found = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{str(path)!r} cannot be read ({_reason(error)})") from error
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        raise DataError(f"{str(path)!r} has no column {missing[0]!r}; amg.py writes it")
    return lines


def _record_of_png(path: Path, line: Mapping[str, str], size: tuple[int, int]) -> dict[str, Any]:
    counts = _encode(_read_png(path), path, size)
    try:
        scores, point, crop = ([float(line[n]) for n in part] for part in (_SCORES, _POINT, _CROP))
        return _record(counts, to_coco_string(counts), size[0], scores, point, crop)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{str(path.with_name(METADATA))!r}: the line of id {line['id']!r} holds no number"
            f" ({_reason(error)})"
        ) from error


def _read_png(path: Path) -> np.ndarray:
    """(H, W) uint8 of 0 and 255."""
    try:
        data = path.read_bytes()
        # OpenCV lets other threads run while it decodes, but takes a file that was cut short.
        whole = np.frombuffer(data, np.uint8) if _is_whole_png(data) else None
        values = None if whole is None else cv2.imdecode(whole, cv2.IMREAD_GRAYSCALE)
    except (OSError, cv2.error) as error:
        raise DataError(f"mask {str(path)!r} cannot be read ({_reason(error)})") from error
    if values is None:
        raise DataError(f"mask {str(path)!r} is no PNG file, or damaged")
    if ((values != 0) & (values != 255)).any():
        raise DataError(f"mask {str(path)!r} holds other values than 0 and 255 (255 = mask)")
    return values


def _is_whole_png(data: bytes) -> bool:
    """Whether all chunks are there up to the end chunk, each with its checksum."""
    place = len(_PNG_SIGNATURE)
    if not data.startswith(_PNG_SIGNATURE):
        return False
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        end = place + 8 + length
        if zlib.crc32(data[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        if data[place + 4 : place + 8] == b"IEND":
            return True
        place = end + 4
    return False


def _encode(values: np.ndarray, path: Path, size: tuple[int, int]) -> Counts:
    try:
        _check_size(values.shape, size)
    except DataError as error:
        raise DataError(f"mask {str(path)!r}: {error}") from error
    x, y, width, height = cv2.boundingRect(values)
    region = np.asfortranarray(values[y : y + height, x : x + width] > 0)
    return encode_masks([region], [(y, x)], size)[0]


def _read_json(path: Path, size: tuple[int, int]) -> list[dict[str, Any]]:
    try:
        records = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} cannot be read as JSON ({_reason(error)})") from error
    if not isinstance(records, list):
        raise DataError(f"{str(path)!r} holds no list of masks: amg.py --convert-to-rle writes one")
    return [_record_of_json(r, f"{str(path)!r}: mask {k}", size) for k, r in enumerate(records)]


def _record_of_json(record: Any, what: str, size: tuple[int, int]) -> dict[str, Any]:
    missing = [key for key in KEYS if not isinstance(record, dict) or key not in record]
    if missing:
        raise DataError(f"{what} has no {missing[0]!r}; amg.py --convert-to-rle writes it")
    try:
        rle = record["segmentation"]
        _check_size(rle["size"], size)
        text = rle["counts"] if isinstance(rle["counts"], str) else to_coco_string(rle["counts"])
        counts = from_coco_string(text)
        scores = [float(record[name]) for name in _SCORES]
        point = [float(value) for value in record["point_coords"][0]]
        crop = [float(value) for value in record["crop_box"]]
        if counts.sum() != size[0] * size[1] or (counts < 0).any():
            raise DataError(f"its runs cover {counts.sum()} pixels, not {size[0] * size[1]}")
        return _record(counts, text, size[0], scores, point, crop)
    except DataError as error:
        raise DataError(f"{what}: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise DataError(f"{what} is no record of amg.py ({_reason(error)})") from error


def _check_size(found: Sequence[Any], size: tuple[int, int]) -> None:
    if tuple(found) != size:
        shown = "x".join(str(value) for value in reversed(found))
        raise DataError(f"it is {shown} pixels, its image is {size[1]}x{size[0]}")


def _record(
    counts: Counts,
    text: str,
    height: int,
    scores: Sequence[float],
    point: Sequence[float],
    crop: Sequence[float],
) -> dict[str, Any]:
    if (len(point), len(crop)) != (2, 4):
        raise ValueError("a point has 2 numbers and a crop box 4")
    if not all(0 <= value < _MOST_PIXELS for value in crop):
        raise ValueError(f"its crop box is {[*crop]}, which lies in no image")
    return {
        "counts": text,
        "area": int(counts[1::2].sum()),
        "bbox": bounding_box(counts, height),
        "predicted_iou": scores[0],
        "stability_score": scores[1],
        "point": list(point),
        "crop_box": [int(value) for value in crop],
    }


def bounding_box(counts: Counts, height: int) -> list[int]:
    """x, y, width, height as SAM counts them: width and height are one less than the pixels'.

    counts: run lengths, column by column, of a mask in an image of `height` pixels.
    """
    ends = np.cumsum(counts)
    begin, end = ends[0::2][: len(ends) // 2], ends[1::2]
    some = end > begin
    begin, last = begin[some], end[some] - 1
    if not len(begin):
        return [0, 0, 0, 0]
    left, right = begin[0] // height, last[-1] // height
    # A run that goes on in the next column holds a last row and a first one.
    spans = (begin // height != last // height).any()
    top = 0 if spans else (begin % height).min()
    bottom = height - 1 if spans else (last % height).max()
    return [int(left), int(top), int(right - left), int(bottom - top)]


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:120]
