"""Output folders of segment-anything's scripts/amg.py, each with the masks of one image.

By default amg.py writes a folder with 0.png, 1.png, ... (255 = mask) and metadata.csv with a line for
each mask. Its JSON files are read in json_files.py.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sfss_ray.errors import DataError
from sfss_ray.masks.bank.run_lengths import Counts, encode_masks, to_coco_string
from sfss_ray.masks.importing.records import (
    MaskAttributes,
    check_size,
    mask_record,
    reason_of,
)

METADATA = "metadata.csv"
_SCORES = ("predicted_iou", "stability_score")
_POINT = ("point_input_x", "point_input_y")
_CROP = ("crop_box_x0", "crop_box_y0", "crop_box_w", "crop_box_h")
COLUMNS = ("id", *_SCORES, *_POINT, *_CROP)
"""Columns of metadata.csv that are read; amg.py also writes area and bbox_*."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_amg_folder(folder: Path, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return the mask records of an image, in amg.py's order.

    Args:
        folder: of the image's PNG files and their table.
        size: (height, width) of the image in pixels, which every mask must have.

    Raises:
        DataError: a file is missing, damaged or of another form; names the file and the reason.
    """
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
        raise DataError(f"{str(path)!r} cannot be read ({reason_of(error)})") from error
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise DataError(f"{str(path)!r} has no column {missing[0]!r}; amg.py writes it")
    return lines


def _record_of_png(path: Path, line: Mapping[str, str], size: tuple[int, int]) -> dict[str, Any]:
    counts = _encode(_read_png(path), path, size)
    try:
        attributes = MaskAttributes(
            *([float(line[name]) for name in names] for names in (_SCORES, _POINT, _CROP))
        )
        return mask_record(counts, to_coco_string(counts), size, attributes)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{str(path.with_name(METADATA))!r}: the line of id {line['id']!r} has an invalid number"
            f" ({reason_of(error)})"
        ) from error


def _read_png(path: Path) -> np.ndarray:
    """Return the pixels of a mask, uint8 (H, W) of 0 and 255."""
    try:
        data = path.read_bytes()
        # OpenCV releases Python's lock while it decodes, but it accepts truncated files.
        complete = np.frombuffer(data, np.uint8) if _is_whole_png(data) else None
        pixels = None if complete is None else cv2.imdecode(complete, cv2.IMREAD_GRAYSCALE)
    except (OSError, cv2.error) as error:
        raise DataError(f"mask {str(path)!r} cannot be read ({reason_of(error)})") from error
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
        check_size(pixels.shape, size)
    except DataError as error:
        raise DataError(f"mask {str(path)!r}: {error}") from error
    x, y, width, height = cv2.boundingRect(pixels)
    region = np.asfortranarray(pixels[y : y + height, x : x + width] > 0)
    return encode_masks([region], [(y, x)], size)[0]
