"""The Parquet schema of masks, and shards of it: written whole, read with what made them.

A row per image, also for an image without masks or one that could not be read (`error` says why).
Masks keep their overlaps and scores. Which one is on top is decided when an id map is painted.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sfss_ray.data.content import Content
from sfss_ray.masks.bank.shards import DamagedShardError, Shard
from sfss_ray.storage.files import writing
from sfss_ray.version import __version__

METADATA_KEY = b"sfss_ray.masks"
CODE_VERSION = "code_version"
"""Key of the metadata that says which release wrote a shard; it does not decide what masks are like."""
SHARD_PREFIX = "masks-"
_SHARD_NAME = re.compile(rf"{SHARD_PREFIX}[0-9a-f]{{16}}\.parquet")
_ROWS_PER_GROUP = 2  # a random row is read with its group: small groups suit training

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


def shard_paths(folder: Path | str) -> list[Path]:
    """Finished shards of masks of a folder: files of others that lie there are left out."""
    return [path for path in parquet_files(folder) if read_recipe(path) is not None]


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
