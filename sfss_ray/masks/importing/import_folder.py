"""Masks made elsewhere -> Parquet shards: what segment-anything's scripts/amg.py wrote is imported.

Plain threads, no cluster: reading files is all there is to do. A shard is written whole or not at
all, so an import that was stopped goes on where it was.
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
from sfss_ray.masks.bank.claims import claimed
from sfss_ray.masks.bank.schema import as_stored, content_columns, shard_name, write_shard
from sfss_ray.masks.bank.shards import Shard
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.importing.amg_files import METADATA, read_masks
from sfss_ray.masks.regions import IMPORTED, RegionRecipe
from sfss_ray.masks.resume import FoundRow, changed_images, find_rows, remove_leftovers
from sfss_ray.masks.summary import MaskSummary, summarise
from sfss_ray.runtime.progress import Progress, ProgressSink, print_line
from sfss_ray.storage.files import require_lasting


@dataclass(frozen=True)
class _Shard:
    """A shard to write: rows that stay, and images whose rows are to be made."""

    path: Path
    kept: list[dict[str, Any]]
    before: list[dict[str, Any]]
    """Rows that are made again; empty for a new shard."""
    images: list[ImageFile]


def import_masks(
    source: Path | str,
    images: Path | str,
    output_dir: Path | str,
    *,
    config: Config | None = None,
    progress: ProgressSink = print_line,
) -> MaskSummary:
    """Make a folder of masks from what segment-anything's scripts/amg.py wrote.

    Args:
        source: amg.py's output folder: for each image NAME/ with 0.png, 1.png, ... and metadata.csv, or
            NAME.json (`--convert-to-rle`). NAME is an image's path below `images` without suffix, or
            its file name alone where no two images share it.
        images: Folder of the images; its folders are searched too.
        output_dir: Folder for the Parquet shards. Rows in it are kept, except those of images or mask
            files that were changed since, and of images whose masks could not be read.
        config: The whole config; `masks.images_per_shard` is used.
        progress: Called with a line of text as work goes on.

    Returns:
        Counts, and the images without masks with the reason.

    Raises:
        DataError: a folder is missing, `source` lies among the images, not one image has masks, or the
            output folder is a file.
        ResumeError: the folder holds masks that were made, not imported, or of other images, or another
            run is writing masks there.
    """
    started = time.monotonic()
    folder = require_lasting(output_dir)
    root = _checked_source(source, images)
    config = config or Config()
    files, notes = open_images(images, config, role="images")
    for note in notes:
        progress(note)
    places = _find_places(root, files)
    if not any(isinstance(place, Path) for place in places.values()):
        raise DataError(_nothing_found(root, files))
    recipe = RegionRecipe(IMPORTED, "", "", {})
    size = config.masks.images_per_shard
    with claimed(folder):
        remove_leftovers(folder)
        rows = find_rows(folder, recipe.of(files), remove_damaged=True)
        again = _to_import_again(folder, rows, files, places)
        work = [*_shards_again(rows, again), *_new_shards(folder, files, rows, size)]
        made = _write_all(work, places, recipe.of(files), progress)
    seconds = time.monotonic() - started
    summary = summarise(MaskStore(folder), files, IMPORTED, made, seconds)
    return dataclasses.replace(summary, folder=folder)


def _checked_source(source: Path | str, images: Path | str) -> Path:
    root = Path(source).absolute()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"masks to import: {str(source)!r} {what}; give amg.py's output folder")
    inside = require_folder(images, "images").resolve()
    if root.resolve().is_relative_to(inside):
        raise DataError(
            f"masks to import: {str(source)!r} lies in the image folder, where its PNG files count as"
            " images; move it out"
        )
    return root


def _find_places(root: Path, files: Sequence[ImageFile]) -> dict[str, Path | str]:
    """image_id -> the folder or JSON file of its masks, or why there is none."""
    names = Counter(Path(file.image_id).name for file in files)
    return {file.image_id: _find_place(root, file.image_id, names) for file in files}


def _find_place(root: Path, image_id: str, names: Counter[str]) -> Path | str:
    name = Path(image_id).name
    for stem in dict.fromkeys((image_id, name)):
        place = next((p for p in (root / f"{stem}.json", root / stem) if _is_there(p)), None)
        if place is None:
            continue
        if stem != image_id and names[name] > 1:
            return (
                f"{str(place)!r} may belong to each of {names[name]} images named {name!r}: put masks"
                " into folders as the images are"
            )
        return place
    return f"no masks: neither {name}/{METADATA} nor {name}.json in {str(root)!r}"


def _is_there(place: Path) -> bool:
    """A folder without a table counts when it holds masks: images may lie in folders of that name."""
    if place.suffix == ".json" and place.is_file():
        return True
    return place.is_dir() and ((place / METADATA).exists() or (place / "0.png").exists())


def _nothing_found(root: Path, files: Sequence[ImageFile]) -> str:
    name = files[0].image_id
    there = ", ".join(repr(n) for n in sorted(os.listdir(root))[:3]) or "nothing"
    return (
        f"masks to import: none of the {len(files)} images has masks in {str(root)!r}; expected is"
        f" {name}/{METADATA} with 0.png, 1.png, ..., or {name}.json; found is {there}"
    )


def _new_shards(
    folder: Path, files: Sequence[ImageFile], done: Container[str], size: int
) -> Iterator[_Shard]:
    missing = [file for file in files if file.image_id not in done]
    for start in range(0, len(missing), size):
        part = missing[start : start + size]
        yield _Shard(folder / shard_name(f.image_id for f in part), [], [], part)


def _to_import_again(
    folder: Path,
    rows: Mapping[str, FoundRow],
    files: Sequence[ImageFile],
    places: Mapping[str, Path | str],
) -> list[ImageFile]:
    """Images whose rows no longer count: an error, or the image or its masks were changed since."""
    altered = changed_images(folder, rows, files)
    return [
        file
        for file in files
        if (row := rows.get(file.image_id)) is not None
        and (row.failed or file.image_id in altered or _is_outdated(row, places[file.image_id]))
    ]


def _is_outdated(row: FoundRow, place: Path | str) -> bool:
    """Whether the files that masks were imported from were written again; gone, they change nothing."""
    if isinstance(place, str):
        return False
    if row.imported_from is not None:
        return row.imported_from != stamp_of(place)
    files = [place, *place.iterdir()] if place.is_dir() else [place]
    return max(file.stat().st_mtime_ns for file in files) > row.shard.stat().st_mtime_ns


def stamp_of(place: Path) -> str:
    """Names, sizes and times of the files of one image's masks, as a hash."""
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    status = [(file.name, file.stat()) for file in files]
    lines = [f"{name}\0{found.st_size}\0{found.st_mtime_ns}" for name, found in status]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _shards_again(rows: Mapping[str, FoundRow], files: Sequence[ImageFile]) -> Iterator[_Shard]:
    """Shards with rows that are made again."""
    by_shard: dict[Path, dict[str, ImageFile]] = {}
    for file in files:
        by_shard.setdefault(rows[file.image_id].shard, {})[file.image_id] = file
    for path, again in sorted(by_shard.items()):
        with Shard.at(path).opened() as parquet:
            present = parquet.read().to_pylist()
        before = [row for row in present if row["image_id"] in again]
        kept = [row for row in present if row["image_id"] not in again]
        yield _Shard(path, kept, before, [again[row["image_id"]] for row in before])


def _write_all(
    work: Sequence[_Shard],
    places: dict[str, Path | str],
    recipe: RegionRecipe,
    progress: ProgressSink,
) -> int:
    """Write what is new; returns for how many images masks or errors differ from before."""
    total = sum(len(shard.images) for shard in work)
    if total:
        done = f", {len(places) - total} are imported already" if total < len(places) else ""
        progress(f"masks: {total} of {len(places)} images to import{done}")
    bar, made, errors = Progress("imported", total, progress), 0, 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for shard in work:
            rows = []
            for row in pool.map(lambda file: _row(file, places[file.image_id]), shard.images):
                rows.append(row)
                errors += row["error"] is not None
                bar.advance(1, f", {errors} without masks" if errors else "")
            rows = as_stored(rows)
            if rows != shard.before:
                write_shard(
                    shard.path,
                    sorted(shard.kept + rows, key=lambda row: row["image_id"]),
                    recipe.as_dict(),
                )
            former = {_result(row) for row in shard.before}
            made += sum(_result(row) not in former for row in rows)
    return made


def _result(row: Mapping[str, Any]) -> str:
    """What an import found, whatever the times of the files; as text, NaN equals NaN."""
    return json.dumps([row[name] for name in ("image_id", "height", "width", "masks", "error")])


def _row(file: ImageFile, place: Path | str) -> dict[str, Any]:
    row: dict[str, Any] = {"image_id": file.image_id, "path": printable(file.path), "error": None}
    try:
        if isinstance(place, str):
            raise DataError(place)
        row |= {"imported_from": stamp_of(place)}
        height, width = file.read().shape[:2]
        row |= content_columns(Content.of_file(file.path))
        return row | {"height": height, "width": width, "masks": read_masks(place, (height, width))}
    except DataError as error:
        return row | {"height": 0, "width": 0, "masks": [], "error": str(error)}
