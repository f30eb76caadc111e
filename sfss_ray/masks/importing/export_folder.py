"""Exports a folder of masks as COCO JSON, or in the forms of segment-anything's scripts/amg.py."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from sfss_ray.config import Config
from sfss_ray.errors import DataError, OutputError
from sfss_ray.masks.bank.run_lengths import Counts, decode, from_coco_string
from sfss_ray.masks.bank.schema import is_damaged, parquet_files
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.importing.amg_files import METADATA
from sfss_ray.masks.importing.coco_writer import writing_coco
from sfss_ray.masks.importing.records import bounding_box
from sfss_ray.runtime.progress import Progress, ProgressSink, print_line
from sfss_ray.storage.files import require_lasting, whole_file, write_text
from sfss_ray.storage.places import Place, to_place

ExportFormat = Literal["coco", "amg", "amg_png"]
COCO_FILE = "coco.json"
Row = dict[str, Any]
_TABLE = (
    *("id", "area", "bbox_x0", "bbox_y0", "bbox_w", "bbox_h", "point_input_x", "point_input_y"),
    *("predicted_iou", "stability_score"),
    *("crop_box_x0", "crop_box_y0", "crop_box_w", "crop_box_h"),
)
"""Columns of amg.py's table."""


@dataclass(frozen=True)
class ExportedMasks:
    """Result of an export of masks."""

    output: Path
    """The COCO file, or the folder of amg.py's files."""
    format: str
    images: int
    masks: int
    errors: dict[str, str] = field(default_factory=dict)
    """image_id -> why it has no masks; such images are not exported."""


def export_masks(
    masks: Place | str,
    output_dir: Path | str,
    *,
    format: ExportFormat = "coco",
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> ExportedMasks:
    """Write the masks of a folder in a form that other tools read.

    `import_masks` gives back the same masks in the same order with the same scores.

    Args:
        masks: Folder of masks made by `generate_masks` or `import_masks`, or its address.
        output_dir: Folder of the files. For the forms of amg.py it must be new or empty.
        format: Form of the files: coco, amg or amg_png. coco is one file, coco.json, with compressed run
            lengths; it replaces an old one. amg is a JSON file per image, as segment-anything's amg.py
            writes with --convert-to-rle. amg_png is its default, a folder of PNG files and a table per
            image.
        config: Not used; every command takes one.
        progress: Called with a line of text as work goes on.

    Returns:
        Counts, and the images that have no masks with the reason; they are left out.

    Raises:
        DataError: the folder has no masks, or one of its files is damaged.
        OutputError: the output cannot be written, or the folder is not empty.
    """
    path = require_lasting(output_dir)
    store = MaskStore(_existing(masks))
    _refuse_damaged(store)
    path = path / COCO_FILE if format == "coco" else path
    image_ids = [image_id for image_id in store.ids() if image_id not in store.errors]
    num_masks = 0
    with (
        _writing(path, format) as write,
        Progress("exported", len(image_ids), progress) as bar,
    ):
        for image_id in image_ids:
            row = store.load(image_id)
            write(row)
            num_masks += len(row["masks"])
            bar.advance(1)
    return ExportedMasks(
        path, format, len(image_ids), num_masks, dict(sorted(store.errors.items()))
    )


def _existing(masks: Place | str) -> Place:
    """Return a folder or address of masks; raise a DataError if the folder does not exist."""
    address = to_place(masks)
    if isinstance(address, Path) and not address.is_dir():
        problem = "is a file" if address.exists() else "does not exist"
        raise DataError(f"masks folder {str(masks)!r} {problem}; give a folder of masks")
    return address


def _refuse_damaged(store: MaskStore) -> None:
    """Raise a DataError for files that are no whole shard: a store leaves their images out."""
    files = parquet_files(store.location)
    names = [file.name for file in files if is_damaged(file)]
    if names:
        raise DataError(
            f"{len(names)} of {len(files)} files of masks in {str(store.location)!r} are damaged (first:"
            f" {names[0]!r}), and their images would be missing: make these masks again, or remove the"
            " files"
        )


@contextmanager
def _writing(path: Path, format_name: ExportFormat) -> Iterator[Callable[[Row], None]]:
    """Yield a function that writes the masks of an image."""
    if format_name == "coco":
        with writing_coco(path, [{"id": 1, "name": "mask", "supercategory": ""}]) as writer:
            yield lambda row: writer.add(
                _coco_image(row), [_annotation(m, row) for m in row["masks"]]
            )
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(
            f"output folder {str(path)!r} exists and is not an empty folder: give a new one, so that its"
            " files are those of these masks alone"
        )
    write = _write_json if format_name == "amg" else _write_folder
    yield lambda row: write(path, row)


def _coco_image(row: Row) -> dict[str, Any]:
    name = f"{row['image_id']}{Path(row['path']).suffix}"
    return {"file_name": name, "width": row["width"], "height": row["height"]}


def _annotation(mask: Row, row: Row) -> dict[str, Any]:
    """Return a mask as an annotation of COCO, with SAM's attributes as in SA-1B."""
    x, y, width, height = bounding_box(from_coco_string(mask["counts"]), row["height"])
    is_empty = mask["area"] == 0
    # COCO's width is that of the pixels, one more than SAM's distance between the first and the last.
    box = [x, y, 0, 0] if is_empty else [x, y, width + 1, height + 1]
    return {"category_id": 1, "iscrowd": 0} | _amg_record(mask, row) | {"bbox": box}


def _amg_record(mask: Row, row: Row) -> dict[str, Any]:
    """Return a mask as amg.py's JSON has it; attributes that it has not are left out."""
    box = bounding_box(from_coco_string(mask["counts"]), row["height"])
    size = [row["height"], row["width"]]
    entry = {
        "segmentation": {"size": size, "counts": mask["counts"]},
        "area": mask["area"],
        "bbox": box,
        "predicted_iou": mask["predicted_iou"],
        "point_coords": [mask["point"]],
        "stability_score": mask["stability_score"],
        "crop_box": mask["crop_box"],
    }
    if any(map(math.isnan, mask["point"])):
        del entry["point_coords"]
    for name in ("predicted_iou", "stability_score"):
        if math.isnan(mask[name]):
            del entry[name]
    return entry


def _write_json(folder: Path, row: Row) -> None:
    records = [_amg_record(mask, row) for mask in row["masks"]]
    write_text(folder / f"{row['image_id']}.json", json.dumps(records, allow_nan=False))


def _write_folder(root: Path, row: Row) -> None:
    """Write the folder of an image; its table is written last."""
    folder, size = root / row["image_id"], (row["height"], row["width"])
    lines = []
    for k, mask in enumerate(row["masks"]):
        counts = from_coco_string(mask["counts"])
        _write_png(folder / f"{k}.png", counts, size)
        box, point = bounding_box(counts, size[0]), mask["point"]
        scores = [mask["predicted_iou"], mask["stability_score"]]
        lines.append([k, mask["area"], *box, *point, *scores, *mask["crop_box"]])
    with (
        whole_file(folder / METADATA) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows([_TABLE, *lines])


def _write_png(path: Path, counts: Counts, size: tuple[int, int]) -> None:
    pixels = np.ascontiguousarray(np.uint8(255) * decode(counts, size))
    with whole_file(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
