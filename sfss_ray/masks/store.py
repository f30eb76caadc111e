"""The Parquet schema of masks, in one place, and the reader of a folder of shards.

A row per image, also for an image without masks or one that could not be read (`error` says why).
Masks keep their overlaps and scores; which one is on top is decided when an id map is painted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from sfss_ray.errors import DataError
from sfss_ray.masks.rle import paint_id_map, paint_order
from sfss_ray.version import __version__

METADATA_KEY = b"sfss_ray.masks"
CODE_VERSION = "code_version"
"""Key of the metadata that says which release wrote a shard; it does not decide what masks are like."""
_URI = re.compile(r"^([a-z][a-z0-9]+):/+")
_ROWS_PER_GROUP = 8  # a random row is read with its group: small groups suit training
_CACHED_IMAGES = 1024

MASK_TYPE = pa.struct(
    [
        ("counts", pa.string()),  # COCO RLE string
        ("area", pa.int64()),  # pixels
        ("bbox", pa.list_(pa.int32(), 4)),  # x, y, width, height
        ("predicted_iou", pa.float32()),
        ("stability_score", pa.float32()),
        ("point", pa.list_(pa.float32(), 2)),  # x, y of the prompt
        ("crop_box", pa.list_(pa.int32(), 4)),  # x, y, width, height
    ]
)
SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("masks", pa.list_(MASK_TYPE)),
        ("error", pa.string()),
    ]
)


def shard_name(image_ids: Iterable[str]) -> str:
    """File name of the shard with these images: the same images make the same file again."""
    digest = hashlib.sha256("\n".join(image_ids).encode()).hexdigest()[:16]
    return f"masks-{digest}.parquet"


def write_shard(path: Path, rows: list[dict[str, Any]], recipe: Mapping[str, Any]) -> None:
    """Write rows of SCHEMA as one shard, whole or not at all (temporary name, then rename)."""
    made_by = json.dumps(dict(recipe) | {CODE_VERSION: __version__}, sort_keys=True)
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({METADATA_KEY: made_by}))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, temporary, compression="zstd", row_group_size=_ROWS_PER_GROUP)
    temporary.replace(path)


def rows_with_error(path: Path) -> dict[str, str]:
    """image_id -> path of the image, of a shard's images that could not be read."""
    with pq.ParquetFile(path) as parquet:
        table = parquet.read(columns=["image_id", "path", "error"])
    return {r["image_id"]: r["path"] for r in table.to_pylist() if r["error"] is not None}


def drop_rows(path: Path, image_ids: set[str], recipe: Mapping[str, Any]) -> None:
    """Write a shard again without some of its rows; a shard without rows is removed."""
    with pq.ParquetFile(path) as parquet:
        rows = [row for row in parquet.read().to_pylist() if row["image_id"] not in image_ids]
    if rows:
        write_shard(path, rows, recipe)
    else:
        path.unlink()


def read_recipe(path: Path | str, filesystem: FileSystem | None = None) -> dict[str, Any] | None:
    """How a shard was made; None for a file that is no readable shard of masks."""
    try:
        metadata = pq.read_schema(path, filesystem=filesystem).metadata or {}
        return json.loads(metadata[METADATA_KEY])
    except (OSError, pa.ArrowInvalid, KeyError, ValueError):
        return None


def shards(folder: Path | str) -> list[Path]:
    """Finished shards of a folder; hidden (half-written) files do not count."""
    return sorted(p for p in Path(folder).glob("*.parquet") if not p.name.startswith("."))


class MaskStore:
    """Masks of a folder of images, by image id.

    Args:
        folder: where the Parquet shards lie: a path, or an address that pyarrow.fs opens
            (`s3://bucket/masks`, `gs://bucket/masks`, `file:///data/masks`).

    Raises:
        DataError: the folder has no shard, or cannot be reached.
    """

    def __init__(self, folder: Path | str):
        self.folder = folder_address(folder)
        self._place: dict[str, _Place] = {}
        self.errors: dict[str, str] = {}
        self.num_masks = 0
        try:
            self.recipe = self._index_all()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"masks {self.folder!r} cannot be read: {error}") from error

    def _index_all(self) -> dict[str, Any]:
        filesystem, root = _open(self.folder)
        recipe = None
        for file in _remote_shards(filesystem, root):
            made_by = read_recipe(file.path, filesystem)
            if made_by is not None:
                recipe = recipe or made_by
                self._index(filesystem, file)
        if recipe is None:
            raise DataError(f"no masks in {self.folder!r}: make them first with `sfss-ray masks`")
        return recipe

    def _index(self, filesystem: FileSystem, file: FileInfo) -> None:
        # A shard that was made anew has the same name: what was cached of the old one is not its.
        made = file.mtime_ns or 0
        with pq.ParquetFile(file.path, filesystem=filesystem) as parquet:
            table = parquet.read(columns=["image_id", "error", "masks.list.element.area"])
        for row, (image_id, error) in enumerate(
            zip(table["image_id"].to_pylist(), table["error"].to_pylist(), strict=True)
        ):
            self._place[image_id] = (self.folder, file.path, made, row)
            if error is not None:
                self.errors[image_id] = error
        self.num_masks += sum(len(masks or ()) for masks in table["masks"].to_pylist())

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._place

    def ids(self) -> list[str]:
        """All image ids, sorted."""
        return sorted(self._place)

    def load(self, image_id: str) -> dict[str, Any]:
        """The row of an image: image_id, path, height, width, masks (list of dicts), error."""
        if image_id not in self._place:
            raise DataError(
                f"no masks of image {image_id!r} in {self.folder!r}: make them first with"
                " `sfss-ray masks`"
            )
        return _read_row(*self._place[image_id])

    def id_map(
        self,
        image_id: str,
        window: tuple[int, int, int, int] | None = None,
        painting: Literal["fine", "coarse"] = "fine",
    ) -> np.ndarray:
        """int32 (h, w) mask ids of a window (top, left, height, width), 0 = no mask.

        Mask k of the row has id k + 1 in every window. `fine` paints the smallest on top, `coarse`
        the largest.
        """
        row = self.load(image_id)
        size = (row["height"], row["width"])
        rles = [mask | {"height": size[0], "width": size[1]} for mask in row["masks"]]
        order = paint_order([mask["area"] for mask in row["masks"]], painting)
        return paint_id_map(rles, order, window, image_size=size)


_Place = tuple[str, str, int, int]
"""Address of the folder, path of the shard, its time of making in ns, row."""


def folder_address(folder: Path | str) -> str:
    """An absolute path, or an address as pyarrow.fs reads it."""
    text = os.fspath(folder)
    scheme = _URI.match(text)
    if scheme is None:
        return str(Path(text).absolute())
    # A Path made of an address has lost slashes: s3:/bucket, file:/folder.
    slashes = ":///" if scheme[1] == "file" else "://"
    return scheme[1] + slashes + text[scheme.end() :]


def local_folder(folder: Path | str) -> Path:
    """The folder as an absolute path; DataError for an address that is no path."""
    address = folder_address(folder)
    if _URI.match(address):
        raise DataError(
            f"masks are written to a folder, not to {address!r}: give a path on a disk that all nodes"
            " share, and copy the finished files there"
        )
    return Path(address)


@lru_cache(maxsize=16)
def _open(address: str) -> tuple[FileSystem, str]:
    """The file system of an address and the folder's path there."""
    if _URI.match(address) is None:
        return LocalFileSystem(), address
    try:
        return FileSystem.from_uri(address)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"masks {address!r}: no such kind of place ({error}); give a path, or an address that"
            " begins with s3://, gs:// or file://"
        ) from error


def _remote_shards(filesystem: FileSystem, root: str) -> list[FileInfo]:
    """As `shards`, on any file system."""
    found = filesystem.get_file_info(FileSelector(root, allow_not_found=True))
    files = [f for f in found if f.type == FileType.File and f.base_name.endswith(".parquet")]
    return sorted((f for f in files if not f.base_name.startswith(".")), key=lambda f: f.path)


@lru_cache(maxsize=_CACHED_IMAGES)
def _read_row(folder: str, path: str, made: int, row: int) -> dict[str, Any]:
    with pq.ParquetFile(path, filesystem=_open(folder)[0]) as parquet:
        group, offset = divmod(row, _ROWS_PER_GROUP)
        return parquet.read_row_group(group).slice(offset, 1).to_pylist()[0]
