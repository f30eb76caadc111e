"""Finds out which images of a folder of masks are done, and which must be made again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfss_ray.config import differences
from sfss_ray.data.content import Content, changed_files
from sfss_ray.data.decoding import image_size
from sfss_ray.data.file_names import printable
from sfss_ray.data.folders import ImageFile, evenly_spread
from sfss_ray.errors import DataError, ResumeError
from sfss_ray.masks.bank.schema import (
    CODE_VERSION,
    content_from_row,
    drop_rows,
    has_shard_name,
    is_damaged,
    parquet_files,
    read_shard,
)
from sfss_ray.masks.bank.shards import Shard
from sfss_ray.masks.regions import RegionRecipe
from sfss_ray.runtime.crash_guard import killed_its_process
from sfss_ray.storage.files import written_after
from sfss_ray.storage.places import ObjectPath, Place

# Images of a moved data set whose sizes are compared: on a network disk one takes milliseconds.
_MAX_COMPARED = 2000
_ROW_COLUMNS = ("image_id", "path", "height", "width", "error")
_ROW_COLUMNS += ("image_bytes", "image_mtime_ns", "image_sha256", "imported_from")


@dataclass(frozen=True)
class StoredRow:
    """A row of a folder of masks."""

    shard: Place
    path: str
    """Of its image when its masks were made."""
    size: tuple[int, int]
    """(height, width) of its image."""
    error: str | None
    """Why it has no masks."""
    content: Content | None = None
    """Of its image file; None in shards of earlier releases."""
    imported_from: str | None = None
    """Stamp of the files from which it was imported."""

    @property
    def failed(self) -> bool:
        """Whether it has an error and no masks."""
        return self.error is not None


@dataclass(frozen=True)
class RemainingWork:
    """Images of a run whose masks must be made."""

    images: list[ImageFile]
    """All of them: images without a row, and those whose row is outdated."""
    retried: set[str]
    """Ids of images whose row has an error, and which can be read now."""
    changed: set[str]
    """Ids of images whose file changed after their masks were made."""

    def describe(self, total: int) -> str:
        """Return '3 of 9 images to do (2 changed since their masks were made), 6 are done already'."""
        text = f"{len(self.images)} of {total} images to do"
        if self.changed:
            text += f" ({len(self.changed)} changed since their masks were made)"
        num_done = total - len(self.images)
        return text + (f", {num_done} are done already" if num_done else "")


def remove_leftovers(folder: Place) -> None:
    """Remove the half-written shards of a killed run, and no other files."""
    if isinstance(folder, ObjectPath):  # an object is whole or absent
        return
    for leftover in folder.glob(".masks-*.parquet.*"):
        leftover.unlink(missing_ok=True)


def find_rows(
    folder: Place, recipe: RegionRecipe, remove_damaged: bool = False
) -> dict[str, StoredRow]:
    """Return the rows of a folder by image id.

    Args:
        folder: of the shards.
        recipe: of the masks to be made now.
        remove_damaged: remove shards of this package that are not whole Parquet files.

    Raises:
        ResumeError: the folder contains masks of another recipe.
        DataError: a shard cannot be read.
    """
    rows: dict[str, StoredRow] = {}
    for path in parquet_files(folder):
        if isinstance(path, Path) and not path.is_file():
            continue
        shard_recipe, shard_rows = read_shard(Shard.from_path(path), _ROW_COLUMNS)
        if shard_recipe is not None:
            _require_same_recipe(folder, shard_recipe, recipe)
        elif remove_damaged and has_shard_name(path) and is_damaged(path):
            path.unlink()
        for image_id, row in _stored_rows(path, shard_rows):
            if not row.failed or image_id not in rows:
                rows[image_id] = row
    return rows


def _require_same_recipe(folder: Place, stored: dict[str, Any], recipe: RegionRecipe) -> None:
    settings = differences(_flat(stored), _flat(recipe.as_dict()))
    if settings:
        raise ResumeError(
            f"{str(folder)!r} contains masks made with other settings ({'; '.join(settings)}): give the"
            " same settings to resume there, or another folder"
        )


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return all entries that determine the masks, without the release that made them."""
    entries = {k: v for k, v in recipe.items() if k not in ("knobs", CODE_VERSION)}
    return {"precision": "fp32"} | entries | recipe.get("knobs", {})


def _stored_rows(
    shard: Place, rows: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[str, StoredRow]]:
    for row in rows:
        size, stamp = (row["height"], row["width"]), row.get("imported_from")
        yield (
            row["image_id"],
            StoredRow(shard, row["path"], size, row["error"], content_from_row(row), stamp),
        )


def images_to_do(
    folder: Place, recipe: RegionRecipe, images: Sequence[ImageFile], max_pixels: int
) -> list[ImageFile]:
    """Return the images whose masks must be made; see `find_rows` and `remaining_work`."""
    return remaining_work(folder, find_rows(folder, recipe), images, max_pixels).images


def remaining_work(
    folder: Place, rows: Mapping[str, StoredRow], images: Sequence[ImageFile], max_pixels: int
) -> RemainingWork:
    """Return which of the images must be made, given the rows of the folder.

    Args:
        folder: of the shards, for errors.
        rows: from `find_rows`.
        images: of the run.
        max_pixels: larger images count as unreadable.

    Raises:
        ResumeError: most of the masks belong to other images with the same names.
    """
    changed_ids = changed_images(folder, rows, images)
    retried = {
        image.image_id
        for image in images
        if (row := rows.get(image.image_id)) is not None
        and row.failed
        and _is_readable_now(image, row, max_pixels)
    }
    outdated = retried | changed_ids
    to_do = [i for i in images if i.image_id not in rows or i.image_id in outdated]
    return RemainingWork(to_do, retried, changed_ids)


def drop_rows_of(image_ids: set[str], rows: Mapping[str, StoredRow], recipe: RegionRecipe) -> None:
    """Drop the rows of images whose masks are made again."""
    ids_by_shard: dict[Place, set[str]] = {}
    for image_id in image_ids:
        ids_by_shard.setdefault(rows[image_id].shard, set()).add(image_id)
    for shard, dropped in ids_by_shard.items():
        drop_rows(shard, dropped, recipe.as_dict())


def changed_images(
    folder: Place, rows: Mapping[str, StoredRow], images: Sequence[ImageFile]
) -> set[str]:
    """Return the ids of images with masks whose files have other content now.

    Rows of earlier releases do not store the content of their image. For these, a file at the same path
    counts as changed if it is newer than the shard. A file at another path is compared by its size.

    Raises:
        ResumeError: most of the images at another path are different images, so this is another data
            set with the same file names.
    """
    with_masks = {
        i.image_id: i for i in images if i.image_id in rows and not rows[i.image_id].failed
    }
    contents = {i: content for i in with_masks if (content := rows[i].content) is not None}
    changed_ids = set(changed_files({i: with_masks[i].path for i in contents}, contents))
    without_content = [image for i, image in with_masks.items() if i not in contents]
    changed_ids |= {i.image_id for i in without_content if _is_newer(i, rows[i.image_id])}
    # Few changed images are a data set that was edited; many are another data set.
    moved = [image for i, image in with_masks.items() if _is_elsewhere(image, rows[i])]
    different = [image for image in moved if image.image_id in changed_ids]
    different = different if 2 * len(different) > len(moved) else []
    different += _first_of_other_size([i for i in moved if i.image_id not in contents], rows)
    if different:
        raise ResumeError(_other_images(folder, different[0], rows[different[0].image_id]))
    return changed_ids


def _is_newer(image: ImageFile, row: StoredRow) -> bool:
    """Return whether a file at the same path was written after the shard of its masks."""
    try:
        return written_after(image.path, row.shard) and not _is_elsewhere(image, row)
    except OSError:
        return False


def _first_of_other_size(
    moved: Sequence[ImageFile], rows: Mapping[str, StoredRow]
) -> list[ImageFile]:
    """Return the first image whose size is not that of its masks; only a sample is compared."""
    for image in evenly_spread(list(moved), _MAX_COMPARED):
        try:
            size = image_size(image.path)
        except DataError:  # it was readable when its masks were made
            continue
        if size != rows[image.image_id].size:
            return [image]
    return []


def _other_images(folder: Place, image: ImageFile, row: StoredRow) -> str:
    try:
        height, width = image_size(image.path)
        current_size = f" ({width}x{height})"
    except DataError:
        current_size = ""
    return (
        f"{str(folder)!r} contains masks of other images: the masks of {image.image_id!r} were made from"
        f" {row.path!r} ({row.size[1]}x{row.size[0]}), but its image is now"
        f" {printable(image.path)!r}{current_size}: give another output folder"
    )


def _is_elsewhere(image: ImageFile, row: StoredRow) -> bool:
    return row.path != printable(image.path.absolute())


def _is_readable_now(image: ImageFile, row: StoredRow, max_pixels: int) -> bool:
    """Return whether to retry a failed image. An image that killed its process is not decoded here."""
    try:
        if killed_its_process(row.error):
            return written_after(image.path, row.shard) or _is_elsewhere(image, row)
        image.read(max_pixels)
    except (DataError, OSError):
        return False
    return True
