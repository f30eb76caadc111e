"""What a folder of masks holds already, and what of it counts for these images and this recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfss_ray.config import differences
from sfss_ray.data.folders import ImageFile, evenly_spread, image_size, read_image
from sfss_ray.data.names import printable
from sfss_ray.deaths import killed_its_process
from sfss_ray.errors import DataError, ResumeError
from sfss_ray.masks.places import Shard
from sfss_ray.masks.regions import RegionRecipe
from sfss_ray.masks.store import (
    CODE_VERSION,
    drop_rows,
    has_shard_name,
    is_damaged,
    parquet_files,
    read_recipe,
)

_MOST_COMPARED = 2000  # of a data set that was moved: on a network disk a size takes milliseconds


@dataclass(frozen=True)
class FoundRow:
    """A row that is there already."""

    shard: Path
    path: str
    """Where its image lay."""
    size: tuple[int, int]
    """(height, width) of its image."""
    error: str | None
    """Why it has no masks."""

    @property
    def failed(self) -> bool:
        """Whether it holds an error in place of masks."""
        return self.error is not None


def find_rows(
    folder: Path, recipe: RegionRecipe, images: Sequence[ImageFile]
) -> dict[str, FoundRow]:
    """Rows of a folder by image id, those of other images too.

    Half a shard of ours is removed; files of others are left alone.

    Raises:
        ResumeError: masks that were made otherwise, or of other images.
        DataError: a shard that cannot be read.
    """
    for leftover in folder.glob(".masks-*.parquet.*"):
        leftover.unlink(missing_ok=True)
    rows: dict[str, FoundRow] = {}
    for shard in _own_shards(folder, recipe):
        for image_id, row in _rows_of(shard):
            if not row.failed or image_id not in rows:
                rows[image_id] = row
    _refuse_other_images(folder, rows, images)
    return rows


def drop_mended(
    rows: Mapping[str, FoundRow],
    recipe: RegionRecipe,
    images: Sequence[ImageFile],
    max_pixels: int,
) -> set[str]:
    """Drop the errors of images that can be read now, wherever they lie now; returns their ids."""
    mended: dict[Path, set[str]] = {}
    for image in images:
        row = rows.get(image.image_id)
        if row is not None and row.failed and _is_mended(image, row, max_pixels):
            mended.setdefault(row.shard, set()).add(image.image_id)
    for shard, image_ids in mended.items():
        drop_rows(shard, image_ids, recipe.as_dict())
    return {image_id for image_ids in mended.values() for image_id in image_ids}


def _own_shards(folder: Path, recipe: RegionRecipe) -> Iterator[Path]:
    """Shards of masks, all of this recipe."""
    for path in parquet_files(folder):
        made_by = read_recipe(path)
        if made_by is not None:
            _refuse_other_recipe(folder, made_by, recipe)
            yield path
        elif has_shard_name(path) and is_damaged(path):
            path.unlink()


def _refuse_other_recipe(folder: Path, made_by: dict[str, Any], recipe: RegionRecipe) -> None:
    changed = differences(_flat(made_by), _flat(recipe.as_dict()))
    if changed:
        raise ResumeError(
            f"{str(folder)!r} holds masks made otherwise ({'; '.join(changed)}): give the same"
            " settings to go on there, or another folder"
        )


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """What decides the masks; the release that made them does not."""
    rest = {k: v for k, v in recipe.items() if k not in ("knobs", CODE_VERSION)}
    return {"precision": "fp32"} | rest | recipe.get("knobs", {})


def _rows_of(shard: Path) -> Iterator[tuple[str, FoundRow]]:
    with Shard.at(shard).opened() as parquet:
        table = parquet.read(columns=["image_id", "path", "height", "width", "error"])
    for row in table.to_pylist():
        size = (row["height"], row["width"])
        yield row["image_id"], FoundRow(shard, row["path"], size, row["error"])


def _refuse_other_images(
    folder: Path, rows: Mapping[str, FoundRow], images: Sequence[ImageFile]
) -> None:
    """ResumeError when an image lies elsewhere than that of its masks, and has another size.

    A data set that was moved may go on; another one with the same file names may not.
    """
    moved = [image for image in images if _has_moved(image, rows.get(image.image_id))]
    for image in evenly_spread(moved, _MOST_COMPARED):
        row = rows[image.image_id]
        try:
            size = image_size(image.path)
        except DataError:  # its masks were made while it could be read
            continue
        if size != row.size:
            raise ResumeError(
                f"{str(folder)!r} holds masks of other images: those of {image.image_id!r} are of"
                f" {row.path!r} ({row.size[1]}x{row.size[0]}), its image is now"
                f" {printable(image.path)!r} ({size[1]}x{size[0]}): give another output folder"
            )


def _has_moved(image: ImageFile, row: FoundRow | None) -> bool:
    return row is not None and not row.failed and _lies_elsewhere(image, row)


def _lies_elsewhere(image: ImageFile, row: FoundRow) -> bool:
    return row.path != printable(image.path.absolute())


def _is_mended(image: ImageFile, row: FoundRow, max_pixels: int) -> bool:
    """Whether an image is worth another try. One that kills its process is not decoded here."""
    try:
        if killed_its_process(row.error):
            newer = image.path.stat().st_mtime_ns > row.shard.stat().st_mtime_ns
            return newer or _lies_elsewhere(image, row)
        read_image(image.path, max_pixels)
    except (DataError, OSError):
        return False
    return True
