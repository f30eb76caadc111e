"""The Parquet schema of masks, in one place, and the reader of a folder of shards.

A row per image, also for an image without masks or one that could not be read (`error` says why).
Masks keep their overlaps and scores; which one is on top is decided when an id map is painted.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sfss_ray.data.content import Content
from sfss_ray.errors import DataError
from sfss_ray.files import writing
from sfss_ray.masks.cache import PaintedCache
from sfss_ray.masks.painting import PaintedRuns, paint_image
from sfss_ray.masks.places import (
    DamagedShardError,
    MovedRowError,
    Shard,
    folder_address,
    is_address,
    list_shards,
    unreachable,
    without_secret,
)
from sfss_ray.version import __version__

METADATA_KEY = b"sfss_ray.masks"
CODE_VERSION = "code_version"
"""Key of the metadata that says which release wrote a shard; it does not decide what masks are like."""
SHARD_PREFIX = "masks-"
_SHARD_NAME = re.compile(rf"{SHARD_PREFIX}[0-9a-f]{{16}}\.parquet")
_ROWS_PER_GROUP = 2  # a random row is read with its group: small groups suit training
_ROW = ["image_id", "path", "height", "width", "masks", "error"]
_INDEXED = ["image_id", "error", "masks.list.element.area"]
_INDEXED += ["image_bytes", "image_mtime_ns", "image_sha256"]
_TO_PAINT = ["image_id", "height", "width"]
_TO_PAINT += [f"masks.list.element.{name}" for name in ("counts", "area", "bbox")]

# One for all stores of a process. A 2048x1024 image with 120 masks takes 100 to 130 kB, so that
# 2,000 to 2,600 of them fit; one that does not is read and painted again.
PAINTED = PaintedCache(most_bytes=256 * 2**20)

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
        # Of the image's file when its masks were made; null in shards of former releases.
        ("image_bytes", pa.int64()),
        ("image_mtime_ns", pa.int64()),
        ("image_sha256", pa.string()),
        ("imported_from", pa.string()),  # names, sizes and times of the files that were imported
    ]
)


# The columns that a resumed run reads are short. To start a decompressor for each of their pieces takes
# most of the time: with zstd 100,000 rows take three times as long.
_COMPRESSION = {name: "none" for name in SCHEMA.names if name != "masks"}
_COMPRESSION |= {f"masks.list.element.{name}": "zstd" for name in MASK_TYPE.names}
_COMPRESSION |= {
    f"masks.list.element.{name}.list.element": "zstd" for name in ("bbox", "point", "crop_box")
}


def shard_name(image_ids: Iterable[str]) -> str:
    """File name of the shard with these images: the same images make the same file again."""
    digest = hashlib.sha256("\n".join(image_ids).encode()).hexdigest()[:16]
    return f"{SHARD_PREFIX}{digest}.parquet"


def has_shard_name(path: Path) -> bool:
    """Whether a file is called as `shard_name` calls shards; files of other makers are not."""
    return _SHARD_NAME.fullmatch(path.name) is not None


def write_shard(
    path: Path,
    rows: list[dict[str, Any]],
    recipe: Mapping[str, Any],
    is_wanted: Callable[[], bool] = lambda: True,
) -> None:
    """Write rows of SCHEMA as one shard, whole or not at all (temporary name, then rename).

    `is_wanted` is asked last: where it is not, nothing is left.
    """
    made_by = json.dumps(dict(recipe) | {CODE_VERSION: __version__}, sort_keys=True)
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({METADATA_KEY: made_by}))
    # Its name has the node's: processes of several nodes may make the same shard.
    temporary = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}")
    # No string comes twice: without dictionaries the file is smaller and faster to read.
    # The least and greatest value of a column help to find an image, and nothing else.
    options = {
        "compression": _COMPRESSION,
        "use_dictionary": False,
        "write_statistics": ["image_id"],
        "write_page_checksum": True,
    }
    with writing(path):
        try:
            pq.write_table(table, temporary, row_group_size=_ROWS_PER_GROUP, **options)
            if is_wanted():
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def as_stored(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as a shard gives them back: every column is present, and scores are float32."""
    return pa.Table.from_pylist(rows, schema=SCHEMA).to_pylist()


def drop_rows(path: Path, image_ids: set[str], recipe: Mapping[str, Any]) -> None:
    """Write a shard again without some of its rows; a shard without rows is removed."""
    with pq.ParquetFile(path) as parquet:
        rows = [row for row in parquet.read().to_pylist() if row["image_id"] not in image_ids]
    if rows:
        write_shard(path, rows, recipe)
    else:
        path.unlink()


def read_recipe(path: Path) -> dict[str, Any] | None:
    """How a shard was made; None for a file that is no whole shard of masks.

    DataError when it cannot be read, which says nothing of what it is.
    """
    return recipe_of(Shard.at(path)) if path.is_file() else None


def recipe_of(shard: Shard) -> dict[str, Any] | None:
    """As `read_recipe`, of a shard on any file system."""
    return read_shard(shard, ())[0]


def read_shard(
    shard: Shard, columns: Iterable[str]
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """(how a shard was made, its rows), opened once; None for a file that is no whole shard of masks.

    Columns that a former release did not write are left out of the rows.

    Raises:
        DataError: it cannot be read, or its rows are damaged.
    """
    made_by = None
    try:
        with shard.opened() as parquet:
            schema = parquet.schema_arrow
            made_by = _recipe_in(schema.metadata or {})
            known = [name for name in columns if name.partition(".")[0] in schema.names]
            if made_by is None or not known:
                return made_by, []
            return made_by, parquet.read(columns=known).to_pylist()
    except DamagedShardError:
        if made_by is not None:  # the file is one of masks, and its rows are damaged
            raise
        return None, []


def _recipe_in(metadata: Mapping[bytes, bytes]) -> dict[str, Any] | None:
    try:
        made_by = json.loads(metadata.get(METADATA_KEY, b""))
    except ValueError:
        return None
    return made_by if isinstance(made_by, dict) else None


def is_damaged(path: Path) -> bool:
    """Whether a file that can be read is no whole Parquet file."""
    try:
        with Shard.at(path).opened():
            return False
    except DamagedShardError:
        return True


def parquet_files(folder: Path | str) -> list[Path]:
    """Parquet files of a folder, whoever made them; hidden (half-written) ones do not count."""
    return sorted(p for p in Path(folder).glob("*.parquet") if not p.name.startswith("."))


def shards(folder: Path | str) -> list[Path]:
    """Finished shards of masks of a folder: files of others that lie there are left out."""
    return [path for path in parquet_files(folder) if read_recipe(path) is not None]


_Read = TypeVar("_Read")


def content_columns(content: Content | None) -> dict[str, Any]:
    """The columns that say which image a row was made from."""
    if content is None:
        return {}
    return {
        "image_bytes": content.size,
        "image_mtime_ns": content.mtime_ns,
        "image_sha256": content.sha256,
    }


def content_of(row: Mapping[str, Any]) -> Content | None:
    """The image that a row was made from; None in shards of former releases."""
    if row.get("image_sha256") is None:
        return None
    return Content(row["image_bytes"], row["image_mtime_ns"], row["image_sha256"])


@dataclass
class _Index:
    """Where the row of each image lies. Of two rows of an image the one with masks counts."""

    place: dict[str, tuple[Shard, int]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    masks: dict[str, int] = field(default_factory=dict)
    contents: dict[str, Content] = field(default_factory=dict)
    recipe: dict[str, Any] | None = None

    def add(self, shard: Shard) -> None:
        """Take in the rows of a shard; a file that is none is passed over."""
        made_by, rows = read_shard(shard, _INDEXED)
        self.recipe = self.recipe or made_by
        for row, columns in enumerate(rows):
            image_id, error, content = columns["image_id"], columns["error"], content_of(columns)
            if error is not None and image_id in self.place and image_id not in self.errors:
                continue
            self.place[image_id] = (shard, row)
            self.masks[image_id] = len(columns["masks"] or ())
            self.contents.pop(image_id, None)
            if content is not None:
                self.contents[image_id] = content
            self.errors.pop(image_id, None)
            if error is not None:
                self.errors[image_id] = error


class MaskStore:
    """Masks of a folder of images, by image id.

    Args:
        folder: where the Parquet shards lie: a path, or an address that pyarrow.fs opens
            (`s3://bucket/masks`, `gs://bucket/masks`, `file:///data/masks`).

    Raises:
        DataError: the folder has no shard, one that cannot be read, or cannot be reached.
    """

    def __init__(self, folder: Path | str):
        self.folder = folder_address(folder)
        self._look()

    def _look(self) -> None:
        """Find all rows; what was known is exchanged as a whole, for other threads read on."""
        index = _Index()
        try:
            for shard in list_shards(self.folder):
                index.add(shard)
        except (OSError, pa.ArrowException) as error:
            raise unreachable(self.folder, error) from error
        if index.recipe is None:
            raise DataError(
                f"no masks in {without_secret(self.folder)!r}: make them first with `sfss-ray masks`"
            )
        self._place, self._masks, self.contents = index.place, index.masks, index.contents
        self.recipe, self.errors = index.recipe, index.errors

    @property
    def num_masks(self) -> int:
        """Masks of all images."""
        return sum(self._masks.values())

    def local_shards(self) -> list[Path]:
        """The shards on this machine's disks, by name; none of a folder behind an address."""
        if is_address(self.folder):
            return []
        return sorted({Path(shard.path) for shard, _ in self._place.values()})

    def count(self, image_ids: Iterable[str]) -> int:
        """Masks of some images; one without a row has none."""
        return sum(self._masks.get(image_id, 0) for image_id in image_ids)

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._place

    def ids(self) -> list[str]:
        """All image ids, sorted."""
        return sorted(self._place)

    def load(self, image_id: str) -> dict[str, Any]:
        """The row of an image: image_id, path, height, width, masks (list of dicts), error."""
        return self._fresh(image_id, lambda shard, row: _read_row(shard, row, image_id))

    def _fresh(self, image_id: str, read: Callable[[Shard, int], _Read]) -> _Read:
        """What `read` makes of an image's row, also when its shard was made anew in the meantime."""
        try:
            return read(*self._found(image_id))
        except MovedRowError:
            self._look()
        try:
            return read(*self._found(image_id))
        except MovedRowError as error:
            raise DataError(
                f"masks of image {image_id!r} in {without_secret(self.folder)!r} are being made anew"
                " while they are read: wait until that is done, and open the folder again"
            ) from error

    def _found(self, image_id: str) -> tuple[Shard, int]:
        if image_id not in self._place:
            raise DataError(
                f"no masks of image {image_id!r} in {without_secret(self.folder)!r}: make them first"
                " with `sfss-ray masks`"
            )
        return self._place[image_id]

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
        columns = None if window is None else range(window[1], window[1] + window[3])
        return self._painted(image_id, painting, columns).window(window)

    def id_crop(
        self,
        image_id: str,
        rows: np.ndarray,
        columns: np.ndarray,
        painting: Literal["fine", "coarse"] = "fine",
    ) -> np.ndarray:
        """int32 (h, w) mask ids of the pixels (rows[i], columns[j]): a zoomed, mirrored crop.

        `rows` (h,) must grow, `columns` (w,) may come in any order; see PaintedRuns.at.
        """
        needed = range(int(columns.min()), int(columns.max()) + 1) if len(columns) else range(0)
        return self._painted(image_id, painting, needed).at(rows, columns)

    def _painted(self, image_id: str, painting: str, columns: range | None) -> PaintedRuns:
        """The image, or where no more images are held at least its `columns`."""

        def paint(shard: Shard, row: int) -> PaintedRuns:
            paint_columns = partial(_paint_row, shard, row, image_id, painting)
            return PAINTED.get(
                (shard, row, painting),
                lambda: paint_columns(None),
                None if columns is None else lambda: paint_columns(columns),
            )

        return self._fresh(image_id, paint)


def _read_row(shard: Shard, row: int, image_id: str) -> dict[str, Any]:
    """The row of an image; MovedRowError when another image's lies there by now."""
    return _row_table(shard, row, image_id, _ROW).to_pylist()[0]


def _row_table(shard: Shard, row: int, image_id: str, columns: list[str] | None = None) -> pa.Table:
    """As `_read_row`, of some columns, as a table of one row."""
    with shard.opened() as parquet:
        group = 0
        while group < parquet.num_row_groups and row >= (
            rows := parquet.metadata.row_group(group).num_rows
        ):
            group, row = group + 1, row - rows
        there = group < parquet.num_row_groups
        table = parquet.read_row_group(group, columns).slice(row, 1) if there else None
    if table is None or table["image_id"][0].as_py() != image_id:
        raise MovedRowError(f"masks file {shard.path!r} was made anew: open its folder again")
    return table


def _paint_row(
    shard: Shard, row: int, image_id: str, painting: str, columns: range | None
) -> PaintedRuns:
    """Paint an image, or those of `columns` that it has."""
    table = _row_table(shard, row, image_id, _TO_PAINT)
    masks = table["masks"].chunk(0).flatten()
    return paint_image(
        masks.field("counts").to_pylist(),
        masks.field("area").to_numpy(),
        masks.field("bbox").flatten().to_numpy().reshape(-1, 4),
        (table["height"][0].as_py(), table["width"][0].as_py()),
        painting,
        columns,
    )
