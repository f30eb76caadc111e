"""Imports masks that segment-anything's scripts/amg.py wrote into Parquet shards.

Plain threads suffice, without a cluster, because all the work is reading files. A shard is written
whole or not at all, so that an interrupted import resumes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections import Counter
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
from sfss_ray.masks.importing.amg_files import METADATA, read_masks
from sfss_ray.masks.regions import IMPORTED, RegionRecipe
from sfss_ray.masks.resume import StoredRow, changed_images, find_rows, remove_leftovers
from sfss_ray.masks.summary import MaskSummary, summarise
from sfss_ray.runtime.progress import Progress, ProgressSink, print_line
from sfss_ray.storage.files import require_lasting

_MaskSource = Path | str
"""The folder or JSON file of an image's masks, or the reason why it has none."""


@dataclass(frozen=True)
class _PlannedShard:
    """A shard to write: rows that do not change, and images whose rows must be made."""

    path: Path
    unchanged_rows: list[dict[str, Any]]
    former_rows: list[dict[str, Any]]
    """Rows that are replaced; empty for a new shard."""
    images: list[ImageFile]


def import_masks(
    source: Path | str,
    images: Path | str,
    output_dir: Path | str,
    *,
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> MaskSummary:
    """Make a folder of masks from the output of segment-anything's scripts/amg.py.

    Args:
        source: Output folder of amg.py. For each image it has NAME/ with 0.png, 1.png, ... and
            metadata.csv, or NAME.json (`--convert-to-rle`). NAME is an image's path below `images`
            without suffix, or its file name alone if no two images share it.
        images: Folder of the images; its subfolders are searched too.
        output_dir: Folder for the Parquet shards. Existing rows are kept, except those of images or
            mask files that changed since, and of images whose masks could not be read.
        config: The whole config; `masks.images_per_shard` is used.
        progress: Called with a line of text during the import.

    Returns:
        Counts, and the images without masks with the reason.

    Raises:
        DataError: a folder is missing, `source` lies among the images, no image has masks, or the
            output folder is a file.
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
    sources = _find_sources(root, files)
    if not any(isinstance(mask_source, Path) for mask_source in sources.values()):
        raise DataError(_no_masks_message(root, files))
    recipe = RegionRecipe(IMPORTED, "", "", {}).for_images(files)
    with claim_folder(folder):
        remove_leftovers(folder)
        rows = find_rows(folder, recipe, remove_damaged=True)
        outdated = _outdated_images(folder, rows, files, sources)
        shards = [
            *_shards_to_update(rows, outdated),
            *_new_shards(folder, files, rows, config.masks.images_per_shard),
        ]
        num_made = _write_all(shards, sources, recipe, progress)
    seconds = time.monotonic() - started
    summary = summarise(MaskStore(folder), files, IMPORTED, num_made, seconds)
    return dataclasses.replace(summary, folder=folder)


def _checked_source(source: Path | str, images: Path | str) -> Path:
    root = Path(source).absolute()
    if not root.is_dir():
        reason = "is a file" if root.exists() else "does not exist"
        raise DataError(f"masks to import: {str(source)!r} {reason}; give amg.py's output folder")
    image_folder = require_folder(images, "images").resolve()
    if root.resolve().is_relative_to(image_folder):
        raise DataError(
            f"masks to import: {str(source)!r} lies in the image folder, where its PNG files count as"
            " images; move it out"
        )
    return root


def _find_sources(root: Path, files: Sequence[ImageFile]) -> dict[str, _MaskSource]:
    """Return the source of each image's masks by image id."""
    name_counts = Counter(Path(file.image_id).name for file in files)
    return {file.image_id: _find_source(root, file.image_id, name_counts) for file in files}


def _find_source(root: Path, image_id: str, name_counts: Counter[str]) -> _MaskSource:
    name = Path(image_id).name
    for stem in dict.fromkeys((image_id, name)):
        paths = (root / f"{stem}.json", root / stem)
        path = next((path for path in paths if _has_masks(path)), None)
        if path is None:
            continue
        if stem != image_id and name_counts[name] > 1:
            return (
                f"{str(path)!r} may belong to each of {name_counts[name]} images named {name!r}: put"
                " masks into folders as the images are"
            )
        return path
    return f"no masks: neither {name}/{METADATA} nor {name}.json in {str(root)!r}"


def _has_masks(path: Path) -> bool:
    """Return whether a file or folder is output of amg.py.

    A folder without a table must contain a mask, because subfolders of images may have that name.
    """
    if path.suffix == ".json" and path.is_file():
        return True
    return path.is_dir() and ((path / METADATA).exists() or (path / "0.png").exists())


def _no_masks_message(root: Path, files: Sequence[ImageFile]) -> str:
    name = files[0].image_id
    entries = ", ".join(repr(n) for n in sorted(os.listdir(root))[:3]) or "nothing"
    return (
        f"masks to import: none of the {len(files)} images has masks in {str(root)!r}; expected is"
        f" {name}/{METADATA} with 0.png, 1.png, ..., or {name}.json; found is {entries}"
    )


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
    sources: Mapping[str, _MaskSource],
) -> list[ImageFile]:
    """Return the images whose row has an error, and those that changed themselves or in their masks."""
    changed_ids = changed_images(folder, rows, files)
    return [
        file
        for file in files
        if (row := rows.get(file.image_id)) is not None
        and (
            row.failed or file.image_id in changed_ids or _is_outdated(row, sources[file.image_id])
        )
    ]


def _is_outdated(row: StoredRow, source: _MaskSource) -> bool:
    """Return whether the imported files were rewritten; imported masks outlive deleted files."""
    if isinstance(source, str):
        return False
    if row.imported_from is not None:
        return row.imported_from != stamp_of(source)
    files = [source, *source.iterdir()] if source.is_dir() else [source]
    return max(file.stat().st_mtime_ns for file in files) > row.shard.stat().st_mtime_ns


def stamp_of(source: Path) -> str:
    """Return a hash of the names, sizes and times of the files of one image's masks."""
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    statuses = [(file.name, file.stat()) for file in files]
    lines = [f"{name}\0{status.st_size}\0{status.st_mtime_ns}" for name, status in statuses]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _shards_to_update(
    rows: Mapping[str, StoredRow], outdated: Sequence[ImageFile]
) -> Iterator[_PlannedShard]:
    """Yield the existing shards with rows of outdated images."""
    images_by_shard: dict[Path, dict[str, ImageFile]] = {}
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
    sources: dict[str, _MaskSource],
    recipe: RegionRecipe,
    progress: ProgressSink,
) -> int:
    """Write shards with new rows; return the number of images with new masks or a new error."""
    total = sum(len(shard.images) for shard in shards)
    if total:
        num_done = len(sources) - total
        note = f", {num_done} are imported already" if num_done else ""
        progress(f"masks: {total} of {len(sources)} images to import{note}")
    bar, num_made, num_errors = Progress("imported", total, progress), 0, 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for shard in shards:
            rows = []
            for row in pool.map(lambda file: _make_row(file, sources[file.image_id]), shard.images):
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


def _make_row(file: ImageFile, source: _MaskSource) -> dict[str, Any]:
    row: dict[str, Any] = {"image_id": file.image_id, "path": printable(file.path), "error": None}
    try:
        if isinstance(source, str):
            raise DataError(source)
        row |= {"imported_from": stamp_of(source)}
        height, width = file.read().shape[:2]
        row |= content_columns(Content.of_file(file.path))
        return row | {
            "height": height,
            "width": width,
            "masks": read_masks(source, (height, width)),
        }
    except DataError as error:
        return row | {"height": 0, "width": 0, "masks": [], "error": str(error)}
