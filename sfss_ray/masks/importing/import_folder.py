"""Imports masks that other tools made into Parquet shards.

Plain threads suffice, without a cluster, because all the work is reading files. A shard is written
whole or not at all, so that an interrupted import resumes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfss_ray.config import Config
from sfss_ray.data.content import Content
from sfss_ray.data.file_names import printable
from sfss_ray.data.folders import ImageFile, require_folder
from sfss_ray.data.image_folder import open_images
from sfss_ray.errors import DataError
from sfss_ray.masks.bank.claims import claim_folder
from sfss_ray.masks.bank.schema import as_stored, content_columns, shard_name, write_shard
from sfss_ray.masks.bank.shards import Shard
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.importing.formats import ID_MAPS, MaskFormat
from sfss_ray.masks.importing.mask_sources import (
    ImageMasks,
    MaskCollection,
    MaskFile,
    open_collection,
)
from sfss_ray.masks.regions import IMPORTED, RegionRecipe
from sfss_ray.masks.resume import StoredRow, changed_images, find_rows, remove_leftovers
from sfss_ray.masks.summary import MaskSummary, summarise
from sfss_ray.runtime.progress import Progress, ProgressSink, print_line
from sfss_ray.storage.files import require_lasting, require_on_disk
from sfss_ray.storage.places import ObjectPath, Place


@dataclass(frozen=True)
class _PlannedShard:
    """A shard to write: rows that do not change, and images whose rows must be made."""

    path: Place
    unchanged_rows: list[dict[str, Any]]
    former_rows: list[dict[str, Any]]
    """Rows that are replaced; empty for a new shard."""
    images: list[ImageFile]


def import_masks(
    source: Path | str,
    images: Place | str,
    output_dir: Path | str,
    *,
    format: MaskFormat = "auto",
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> MaskSummary:
    """Make a folder of masks from masks that other tools made.

    Args:
        source: COCO JSON file, or folder with a file for each image. Those are NAME.json, NAME.npz,
            NAME.txt, an id map NAME.png, or the folder NAME/ of segment-anything's amg.py. NAME is an
            image's path below `images` without suffix, or the end of it if no two images share that.
        images: Folder of the images; its subfolders are searched too.
        output_dir: Folder for the Parquet shards. Existing rows are kept, except those of images or
            mask files that changed since, and of images whose masks could not be read.
        format: Format of the masks: auto recognises it from the content of the first files.
        config: The whole config; `masks.images_per_shard` is used.
        progress: Called with a line of text during the import.

    Returns:
        Counts, and the images without masks with the reason.

    Raises:
        DataError: a file or folder is missing, `source` lies among the images, its format is unknown,
            no image has masks, or the output folder is a file.
        ResumeError: the folder contains masks that were not imported, or masks of other images, or
            another run is writing masks there.
    """
    started = time.monotonic()
    folder = require_lasting(output_dir)
    root = _checked_source(source, images)
    config = config or Config()
    files, notes = open_images(images, config, role="images")
    for note in notes:
        progress(note)
    collection = open_collection(root, {file.image_id for file in files}, format)
    for line in collection.lines():
        progress(line)
    recipe = RegionRecipe(IMPORTED, "", "", {}).for_images(files)
    with claim_folder(folder):
        remove_leftovers(folder)
        rows = find_rows(folder, recipe, remove_damaged=True)
        outdated = _outdated_images(folder, rows, files, collection)
        shards = [
            *_shards_to_update(rows, outdated),
            *_new_shards(folder, files, rows, config.masks.images_per_shard),
        ]
        num_made = _write_all(shards, collection, recipe, progress)
    seconds = time.monotonic() - started
    summary = summarise(MaskStore(folder), files, IMPORTED, num_made, seconds)
    return dataclasses.replace(summary, folder=folder)


def _checked_source(source: Path | str, images: Place | str) -> Path:
    root = require_on_disk(source, "masks to import")
    if not root.exists():
        raise DataError(
            f"masks to import: {str(source)!r} does not exist; give a COCO file, or a folder of masks"
        )
    image_folder = require_folder(images, "images")
    if isinstance(image_folder, ObjectPath):
        return root
    is_picture = root.is_dir() or root.suffix.lower() in ID_MAPS
    if is_picture and root.resolve().is_relative_to(image_folder.resolve()):
        raise DataError(
            f"masks to import: {str(source)!r} lies in the image folder, where its PNG files count as"
            " images; move it out"
        )
    return root


def _new_shards(
    folder: Path, files: Sequence[ImageFile], rows: Container[str], images_per_shard: int
) -> Iterator[_PlannedShard]:
    """Yield shards of the images without a row."""
    missing = [file for file in files if file.image_id not in rows]
    for start in range(0, len(missing), images_per_shard):
        images = missing[start : start + images_per_shard]
        yield _PlannedShard(folder / shard_name(f.image_id for f in images), [], [], images)


def _outdated_images(
    folder: Path,
    rows: Mapping[str, StoredRow],
    files: Sequence[ImageFile],
    collection: MaskCollection,
) -> list[ImageFile]:
    """Return the images whose row has an error, and those that changed themselves or in their masks."""
    changed_ids = changed_images(folder, rows, files)
    return [
        file
        for file in files
        if (row := rows.get(file.image_id)) is not None
        and (
            row.failed
            or file.image_id in changed_ids
            or _is_outdated(row, collection.masks.get(file.image_id))
        )
    ]


def _is_outdated(row: StoredRow, masks: ImageMasks | None) -> bool:
    """Return whether the imported files were rewritten; imported masks outlive deleted files."""
    if masks is None:
        return False
    if row.imported_from is not None or not isinstance(masks, MaskFile):
        return row.imported_from != masks.stamp()
    return masks.modified_ns() > row.shard.stat().st_mtime_ns


def _shards_to_update(
    rows: Mapping[str, StoredRow], outdated: Sequence[ImageFile]
) -> Iterator[_PlannedShard]:
    """Yield the existing shards with rows of outdated images."""
    images_by_shard: dict[Place, dict[str, ImageFile]] = {}
    for file in outdated:
        images_by_shard.setdefault(rows[file.image_id].shard, {})[file.image_id] = file
    for path, images in sorted(images_by_shard.items()):
        with Shard.from_path(path).open() as parquet:
            shard_rows = parquet.read().to_pylist()
        former = [row for row in shard_rows if row["image_id"] in images]
        unchanged = [row for row in shard_rows if row["image_id"] not in images]
        yield _PlannedShard(path, unchanged, former, [images[row["image_id"]] for row in former])


def _write_all(
    shards: Sequence[_PlannedShard],
    collection: MaskCollection,
    recipe: RegionRecipe,
    progress: ProgressSink,
) -> int:
    """Write shards with new rows; return the number of images with new masks or a new error."""
    total = sum(len(shard.images) for shard in shards)
    if total:
        num_images = len(collection.masks) + len(collection.reasons)
        num_done = num_images - total
        note = f", {num_done} are imported already" if num_done else ""
        progress(f"masks: {total} of {num_images} images to import{note}")
    bar, num_made, num_errors = Progress("imported", total, progress), 0, 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for shard in shards:
            rows = []
            for row in pool.map(lambda file: _make_row(file, collection), shard.images):
                rows.append(row)
                num_errors += row["error"] is not None
                bar.advance(1, f", {num_errors} without masks" if num_errors else "")
            rows = as_stored(rows)
            if rows != shard.former_rows:
                all_rows = sorted(shard.unchanged_rows + rows, key=lambda row: row["image_id"])
                write_shard(shard.path, all_rows, recipe.as_dict())
            former_results = {_result(row) for row in shard.former_rows}
            num_made += sum(_result(row) not in former_results for row in rows)
    return num_made


def _result(row: Mapping[str, Any]) -> str:
    """Return the result of an import, without times of files; in a text NaN equals NaN."""
    return json.dumps([row[name] for name in ("image_id", "height", "width", "masks", "error")])


def _make_row(file: ImageFile, collection: MaskCollection) -> dict[str, Any]:
    row: dict[str, Any] = {"image_id": file.image_id, "path": printable(file.path), "error": None}
    try:
        masks = collection.masks.get(file.image_id)
        if masks is None:
            raise DataError(collection.reasons[file.image_id])
        row |= {"imported_from": masks.stamp()}
        height, width = file.read().shape[:2]
        row |= content_columns(Content.of_file(file.path))
        records = masks.read((height, width))
        return row | {"height": height, "width": width, "masks": records}
    except DataError as error:
        return row | {"height": 0, "width": 0, "masks": [], "error": str(error)}
