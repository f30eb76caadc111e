"""Masks of one image in a JSON file: lists of records, SA-1B, and dumps of two libraries.

- amg: a list of records as segment-anything's generators return them, of which only `segmentation` is
  required; amg.py writes it with `--convert-to-rle`.
- sa1b: `{"image": {...}, "annotations": [records]}`, a file of SA-1B.
- transformers: `{"masks": [...], "scores": [...]}`, the output of its mask-generation pipeline with
  arrays as nested lists; `rle_mask` (its option output_rle_mask) is used where masks are missing.
- ultralytics: the list that `Results.to_json` gives, with `segments` as `{"x": [...], "y": [...]}`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sfss_ray.errors import DataError
from sfss_ray.masks.bank.run_lengths import Counts
from sfss_ray.masks.importing.records import (
    MaskAttributes,
    attributes_of,
    check_size,
    mask_record,
    reason_of,
)
from sfss_ray.masks.importing.segmentations import read_pixels, read_segmentation
from sfss_ray.storage.text import decode_text

_PICKLE_STARTS = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
PICKLE_ADVICE = "pickles run code when they are opened: save the masks as JSON or NPZ"
Record = dict[str, Any]


def load_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        DataError: it cannot be read, is empty, a pickle, or no JSON; names the file and the reason.
    """
    try:
        data = path.read_bytes()
        if data.startswith(_PICKLE_STARTS):
            raise DataError(f"it is a pickle; {PICKLE_ADVICE}")
        text = decode_text(data)
        if not text.strip():
            raise DataError("it is empty")
        return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} cannot be read as JSON ({reason_of(error)})") from error


def kind_of_json(content: Any) -> str | None:
    """Return the format of a JSON file's content, or None if it has none that is known.

    An empty list is of every format that is a list, and is named "empty".
    """
    if isinstance(content, Mapping):
        if {"images", "annotations"} <= content.keys():
            return "coco"
        if {"image", "annotations"} <= content.keys():
            return "sa1b"
        return "transformers" if {"masks", "rle_mask"} & content.keys() else None
    if not isinstance(content, list):
        return None
    if not content:
        return "empty"
    first = content[0] if isinstance(content[0], Mapping) else {}
    if "segments" in first or {"box", "confidence"} <= first.keys():
        return "ultralytics"
    if "segmentation" in first:
        return "coco" if "image_id" in first else "amg"
    return "coco" if {"image_id", "bbox"} <= first.keys() else None


def read_json_masks(path: Path, size: tuple[int, int], format_name: str) -> list[Record]:
    """Return the mask records of an image from its JSON file.

    Args:
        path: of the file.
        size: (height, width) of the image in pixels.
        format_name: amg, sa1b, transformers or ultralytics.

    Raises:
        DataError: the file is damaged or of another form; names the file and the reason.
    """
    content = load_json(path)
    try:
        return _READERS[format_name](content, size)
    except DataError as error:
        raise DataError(f"{str(path)!r}{error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{str(path)!r} is not a file of {format_name} masks ({reason_of(error)})"
        ) from error


def _read_list(content: Any, size: tuple[int, int]) -> list[Record]:
    if not isinstance(content, list):
        raise DataError(" does not contain a list of masks: amg.py --convert-to-rle writes one")
    return read_entries(content, size)


def read_entries(entries: Sequence[Any], size: tuple[int, int]) -> list[Record]:
    """Return the records of a list of masks with `segmentation` and attributes.

    Raises:
        DataError: an entry is of another form. The message begins with ': mask K'.
    """
    return [read_entry(entry, f": mask {k}", size) for k, entry in enumerate(entries)]


def read_entry(entry: Any, name: str, size: tuple[int, int]) -> Record:
    """Return the record of a mask with `segmentation` and attributes; `name` is that of the mask.

    Raises:
        DataError: the entry is of another form; begins with `name`.
    """
    if not isinstance(entry, Mapping) or "segmentation" not in entry:
        raise DataError(f"{name} has no 'segmentation'")
    return _record(entry["segmentation"], entry, name, size)


def _record(
    segmentation: Any,
    attributes: Mapping[str, Any] | MaskAttributes,
    name: str,
    size: tuple[int, int],
    read: Callable[[Any, tuple[int, int]], tuple[Counts, str]] = read_segmentation,
) -> Record:
    try:
        counts, text = read(segmentation, size)
        if not isinstance(attributes, MaskAttributes):
            attributes = attributes_of(attributes)
        return mask_record(counts, text, size, attributes)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise DataError(f"{name} is not a record of a mask ({reason_of(error)})") from error


def _read_sa1b(content: Any, size: tuple[int, int]) -> list[Record]:
    if kind_of_json(content) != "sa1b" or not isinstance(content["annotations"], list):
        raise DataError(' is not of the form {"image": {...}, "annotations": [...]} of SA-1B')
    image = content["image"] if isinstance(content["image"], Mapping) else {}
    check_declared_size(image, size, "")
    return read_entries(content["annotations"], size)


def check_declared_size(image: Mapping[str, Any], size: tuple[int, int], name: str) -> None:
    """Raise a DataError if the height and width in an image's entry are not those of the image."""
    if image.get("height") is None or image.get("width") is None:
        return
    try:
        check_size((int(image["height"]), int(image["width"])), size)
    except (DataError, TypeError, ValueError) as error:
        raise DataError(f"{name}: {error}") from error


def _read_transformers(content: Any, size: tuple[int, int]) -> list[Record]:
    if kind_of_json(content) != "transformers":
        raise DataError(
            ' is not of the form {"masks": [...], "scores": [...]} of one image, as the mask-generation'
            " pipeline of transformers returns it"
        )
    masks = content.get("masks")
    masks = content.get("rle_mask") if masks is None else masks
    if not isinstance(masks, list):
        raise DataError(f" has masks of type {type(masks).__name__}: allowed is a list")
    scores = content.get("scores")
    scores = [None] * len(masks) if scores is None else scores
    if not isinstance(scores, list) or len(masks) != len(scores):
        raise DataError(" has not one score for each mask")
    return [
        _record(mask, {"score": score}, f": mask {k}", size, read_pixels)
        for k, (mask, score) in enumerate(zip(masks, scores, strict=True))
    ]


def _read_ultralytics(content: Any, size: tuple[int, int]) -> list[Record]:
    if not isinstance(content, list):
        raise DataError(" does not contain a list of results, as ultralytics' to_json gives it")
    polygons = [_segments(entry, f": result {k}") for k, entry in enumerate(content)]
    return polygon_records(polygons, [entry.get("confidence") for entry in content], size)


def _segments(entry: Any, name: str) -> list[float]:
    """Return the outline of a result of ultralytics as x, y, x, y, ..."""
    segments = entry.get("segments") if isinstance(entry, Mapping) else None
    if not isinstance(segments, Mapping):
        raise DataError(f"{name} has no 'segments': only models of segmentation give masks")
    try:
        pairs = zip(segments["x"], segments["y"], strict=True)
        return [float(number) for pair in pairs for number in pair]
    except (TypeError, ValueError, LookupError) as error:
        raise DataError(f"{name} has no outline of numbers ({reason_of(error)})") from error


def polygon_records(
    polygons: Sequence[list[float]], scores: Sequence[Any], size: tuple[int, int]
) -> list[Record]:
    """Return the records of one polygon per mask, as ultralytics writes outlines.

    Its coordinates are pixels, or shares of the image's sides if none in the file is above 1.
    """
    are_shares = max((max(polygon, default=0) for polygon in polygons), default=0) <= 1
    sides = (size[1], size[0]) if are_shares else (1, 1)
    records = []
    for k, (polygon, score) in enumerate(zip(polygons, scores, strict=True)):
        pixels = [number * sides[i % 2] for i, number in enumerate(polygon)]
        records.append(_record([pixels], {"score": score}, f": result {k}", size))
    return records


def read_text_masks(path: Path, size: tuple[int, int]) -> list[Record]:
    """Return the mask records of an image from a file of ultralytics' save_txt.

    Each line is a class and the outline as shares of the image's sides, with or without a confidence.

    Raises:
        DataError: a line has another form; names the file and the line.
    """
    try:
        lines = [line.split() for line in decode_text(path.read_bytes()).splitlines()]
        numbers = [[float(word) for word in line[1:]] for line in lines if line]
        # A box has 4 numbers, and 5 with its confidence.
        box = next((line for line in numbers if len(line) < 6), None)
        if box is not None:
            raise DataError(
                f"a line has {len(box)} numbers behind its class, fewer than an outline"
            )
        scores = [line[-1] if len(line) % 2 else None for line in numbers]
        outlines = [line[: len(line) // 2 * 2] for line in numbers]
        return polygon_records([_as_shares(line) for line in outlines], scores, size)
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} is no file of outlines ({reason_of(error)})") from error


def _as_shares(outline: list[float]) -> list[float]:
    if max(outline) > 1 or min(outline) < 0:
        raise DataError("a coordinate is not a share of the image's side, from 0 to 1")
    return outline


_READERS = {
    "amg": _read_list,
    "sa1b": _read_sa1b,
    "transformers": _read_transformers,
    "ultralytics": _read_ultralytics,
}
