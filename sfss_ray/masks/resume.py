"""What a folder of masks holds already, and what of it counts for these images and this recipe."""

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
    content_of,
    drop_rows,
    has_shard_name,
    is_damaged,
    parquet_files,
    read_shard,
)
from sfss_ray.masks.bank.shards import Shard
from sfss_ray.masks.regions import RegionRecipe
from sfss_ray.runtime.crash_guard import killed_its_process

_MOST_COMPARED = 2000  # of a data set that was moved: on a network disk a size takes milliseconds


@dataclass(frozen=True)
class FoundRow:
    """A row of a folder of masks."""

    shard: Path
    path: str
    """Where its image lay."""
    size: tuple[int, int]
    """(height, width) of its image."""
    error: str | None
    """Why it has no masks."""
    content: Content | None = None
    """Of its image's file; None in shards of former releases."""
    imported_from: str | None = None
    """The stamp of the files it was imported from."""

    @property
    def failed(self) -> bool:
        """Whether it holds an error in place of masks."""
        return self.error is not None


@dataclass(frozen=True)
class Remaining:
    """What a run has to do in a folder of masks."""

    images: list[ImageFile]
    """Without a row, or with one that no longer counts."""
    retried: set[str]
    """Ids of images whose rows hold an error, and which can be read now."""
    changed: set[str]
    """Ids of images whose files were changed since their masks were made."""

    def describe(self, total: int) -> str:
        """'3 of 9 images to do (2 changed since their masks were made), 6 are done already'."""
        text = f"{len(self.images)} of {total} images to do"
        if self.changed:
            text += f" ({len(self.changed)} changed since their masks were made)"
        done = total - len(self.images)
        return text + (f", {done} are done already" if done else "")


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed run left: half-written shards. Files of others are left alone."""
    for leftover in folder.glob(".masks-*.parquet.*"):
        leftover.unlink(missing_ok=True)


def find_rows(
    folder: Path, recipe: RegionRecipe, remove_damaged: bool = False
) -> dict[str, FoundRow]:
    """Rows of a folder by image id.

    Args:
        folder: Of the shards.
        recipe: How masks are made now.
        remove_damaged: Remove shards of ours that are no whole Parquet files.

    Raises:
        ResumeError: masks that were made otherwise.
        DataError: a shard that cannot be read.
    """
    found: dict[str, FoundRow] = {}
    for path in parquet_files(folder):
        if not path.is_file():
            continue
        made_by, rows = read_shard(Shard.at(path), _ROW_COLUMNS)
        if made_by is not None:
            _refuse_other_recipe(folder, made_by, recipe)
        elif remove_damaged and has_shard_name(path) and is_damaged(path):
            path.unlink()
        for image_id, row in _found_rows(path, rows):
            if not row.failed or image_id not in found:
                found[image_id] = row
    return found


def images_to_do(
    folder: Path, recipe: RegionRecipe, images: Sequence[ImageFile], max_pixels: int
) -> list[ImageFile]:
    """Images whose masks are still to be made; see `find_rows` and `remaining`."""
    return remaining(folder, find_rows(folder, recipe), images, max_pixels).images


def remaining(
    folder: Path, rows: Mapping[str, FoundRow], images: Sequence[ImageFile], max_pixels: int
) -> Remaining:
    """What is left to do of some images, given the rows of the folder.

    Raises:
        ResumeError: most of the masks are those of other images with the same names.
    """
    altered = changed_images(folder, rows, images)
    retried = {
        image.image_id
        for image in images
        if (row := rows.get(image.image_id)) is not None
        and row.failed
        and _is_readable_now(image, row, max_pixels)
    }
    again = retried | altered
    left = [i for i in images if i.image_id not in rows or i.image_id in again]
    return Remaining(left, retried, altered)


def drop_rows_of(image_ids: set[str], rows: Mapping[str, FoundRow], recipe: RegionRecipe) -> None:
    """Drop the rows of images whose masks are made again."""
    by_shard: dict[Path, set[str]] = {}
    for image_id in image_ids:
        by_shard.setdefault(rows[image_id].shard, set()).add(image_id)
    for shard, dropped in by_shard.items():
        drop_rows(shard, dropped, recipe.as_dict())


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


def _found_rows(shard: Path, rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, FoundRow]]:
    for row in rows:
        size, stamp = (row["height"], row["width"]), row.get("imported_from")
        found = FoundRow(shard, row["path"], size, row["error"], content_of(row), stamp)
        yield row["image_id"], found


_ROW_COLUMNS = ("image_id", "path", "height", "width", "error")
_ROW_COLUMNS += ("image_bytes", "image_mtime_ns", "image_sha256", "imported_from")


def changed_images(
    folder: Path, rows: Mapping[str, FoundRow], images: Sequence[ImageFile]
) -> set[str]:
    """Ids of images with masks whose files hold something else now.

    Where a row does not say what its image held (former releases), a file at the same place counts as
    changed when it is newer than the shard, and one elsewhere is compared by its size.

    Raises:
        ResumeError: most of the images that lie elsewhere now are others: another data set with the
            same file names.
    """
    made = {i.image_id: i for i in images if i.image_id in rows and not rows[i.image_id].failed}
    known = {i: content for i in made if (content := rows[i].content) is not None}
    altered = set(changed_files({i: made[i].path for i in known}, known))
    without_content = [image for i, image in made.items() if i not in known]
    altered |= {i.image_id for i in without_content if _is_newer(i, rows[i.image_id])}
    moved = [image for i, image in made.items() if _lies_elsewhere(image, rows[i])]
    foreign = [image for image in moved if image.image_id in altered]
    foreign = foreign if 2 * len(foreign) > len(moved) else []
    foreign += _of_other_size([i for i in moved if i.image_id not in known], rows)
    if foreign:
        raise ResumeError(_other_images(folder, foreign[0], rows[foreign[0].image_id]))
    return altered


def _is_newer(image: ImageFile, row: FoundRow) -> bool:
    """Whether a file was written after the shard of its masks, at the same place."""
    try:
        newer = image.path.stat().st_mtime_ns > row.shard.stat().st_mtime_ns
    except OSError:
        return False
    return newer and not _lies_elsewhere(image, row)


def _of_other_size(moved: Sequence[ImageFile], rows: Mapping[str, FoundRow]) -> list[ImageFile]:
    """The first image whose size is not that of its masks; a sample of many is compared."""
    for image in evenly_spread(list(moved), _MOST_COMPARED):
        try:
            size = image_size(image.path)
        except DataError:  # its masks were made while it could be read
            continue
        if size != rows[image.image_id].size:
            return [image]
    return []


def _other_images(folder: Path, image: ImageFile, row: FoundRow) -> str:
    try:
        height, width = image_size(image.path)
        now = f" ({width}x{height})"
    except DataError:
        now = ""
    return (
        f"{str(folder)!r} holds masks of other images: those of {image.image_id!r} are of"
        f" {row.path!r} ({row.size[1]}x{row.size[0]}), its image is now"
        f" {printable(image.path)!r}{now}: give another output folder"
    )


def _lies_elsewhere(image: ImageFile, row: FoundRow) -> bool:
    return row.path != printable(image.path.absolute())


def _is_readable_now(image: ImageFile, row: FoundRow, max_pixels: int) -> bool:
    """Whether an image is worth another try. One that kills its process is not decoded here."""
    try:
        if killed_its_process(row.error):
            newer = image.path.stat().st_mtime_ns > row.shard.stat().st_mtime_ns
            return newer or _lies_elsewhere(image, row)
        image.read(max_pixels)
    except (DataError, OSError):
        return False
    return True
