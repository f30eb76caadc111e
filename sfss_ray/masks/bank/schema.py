"""The Parquet schema of masks, and reading and writing of shards with the recipe that made them.

An image has one row, even without masks or if it could not be read (`error` says why). Masks keep their
overlaps and scores. The mask on top is chosen later, when an id map is painted.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sfss_ray.data.content import Content
from sfss_ray.masks.bank.shards import DamagedShardError, Shard
from sfss_ray.storage.files import writing
from sfss_ray.storage.places import ObjectPath, Place, to_place
from sfss_ray.version import __version__

METADATA_KEY = b"sfss_ray.masks"
CODE_VERSION = "code_version"
"""Metadata key of the release that wrote a shard. It does not influence the masks."""
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
CONCEPTS = "concepts"
"""Source of masks with classes, in their recipe."""
SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("masks", pa.list_(MASK_TYPE)),
        ("error", pa.string()),
        # Of the image file at the time its masks were made; null in shards of earlier releases.
        ("image_bytes", pa.int64()),
        ("image_mtime_ns", pa.int64()),
        ("image_sha256", pa.string()),
        ("imported_from", pa.string()),  # names, sizes and times of the files that were imported
    ]
)


# The columns that a resumed run reads are short, so that starting a decompressor for each of their
# pieces would dominate: with zstd, reading 100,000 rows takes three times as long.
_COMPRESSION = {name: "none" for name in SCHEMA.names if name != "masks"}
_COMPRESSION |= {f"masks.list.element.{name}": "zstd" for name in MASK_TYPE.names}
_COMPRESSION |= {
    f"masks.list.element.{name}.list.element": "zstd" for name in ("bbox", "point", "crop_box")
}

# No string occurs twice, so the file is smaller and faster to read without dictionaries. Statistics are
# only useful for finding an image.
_WRITE_OPTIONS: dict[str, Any] = {
    "row_group_size": _ROWS_PER_GROUP,
    "compression": _COMPRESSION,
    "use_dictionary": False,
    "write_statistics": ["image_id"],
    "write_page_checksum": True,
}


CLASS_ID = "class_id"
"""Field of a mask with the number of its class, where the source is CONCEPTS."""
EMBEDDING = "embedding"
"""Field of a mask with its mean embedding by the network, where the recipe asks for it."""


def schema_of(recipe: Mapping[str, Any]) -> pa.Schema:
    """Return the schema of shards of a recipe: SCHEMA, with what its masks have besides.

    That is an embedding, or for the source CONCEPTS a `class_id` whose score is `predicted_iou`.
    """
    if recipe.get("source") == CONCEPTS:
        mask_type = pa.struct([*MASK_TYPE, pa.field(CLASS_ID, pa.int32())])
    elif recipe.get("embeddings"):
        mask_type = pa.struct([*MASK_TYPE, (EMBEDDING, pa.list_(pa.float16()))])
    else:
        return SCHEMA
    position = SCHEMA.get_field_index("masks")
    return SCHEMA.set(position, pa.field("masks", pa.list_(mask_type)))


def shard_name(image_ids: Iterable[str]) -> str:
    """Return the file name of the shard with these images: the same images give the same name."""
    digest = hashlib.sha256("\n".join(image_ids).encode()).hexdigest()[:16]
    return f"{SHARD_PREFIX}{digest}.parquet"


def has_shard_name(path: Place) -> bool:
    """Return whether a file has a name as `shard_name` returns it; files from elsewhere do not."""
    return _SHARD_NAME.fullmatch(path.name) is not None


def write_shard(
    path: Place,
    rows: list[dict[str, Any]],
    recipe: Mapping[str, Any],
    may_commit: Callable[[], bool] = lambda: True,
) -> None:
    """Write rows of SCHEMA as one shard, whole or not at all (temporary name, then rename).

    Args:
        path: of the shard.
        rows: a dict for each image; missing columns become null. Masks of the source concepts have a
            class_id.
        recipe: of the masks, stored in the metadata.
        may_commit: called before the rename. If it returns False, nothing is written.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    metadata = json.dumps(dict(recipe) | {CODE_VERSION: __version__}, sort_keys=True)
    table = pa.Table.from_pylist(
        rows, schema=schema_of(recipe).with_metadata({METADATA_KEY: metadata})
    )
    if isinstance(path, ObjectPath):
        _upload_shard(path, table, may_commit)
        return
    # The name contains the node: processes of several nodes may write the same shard.
    temporary = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}")
    with writing(path):
        try:
            pq.write_table(table, temporary, **_WRITE_OPTIONS)
            if may_commit():
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _upload_shard(path: ObjectPath, table: pa.Table, may_commit: Callable[[], bool]) -> None:
    """Write a shard as one object: readers see all of it or nothing."""
    with writing(path), tempfile.TemporaryDirectory() as folder:
        file = Path(folder, path.name)
        pq.write_table(table, file, **_WRITE_OPTIONS)
        if may_commit():
            path.upload(file)


def as_stored(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows as a shard returns them: every column is present, and scores are float32."""
    return pa.Table.from_pylist(rows, schema=SCHEMA).to_pylist()


def drop_rows(path: Place, image_ids: set[str], recipe: Mapping[str, Any]) -> None:
    """Rewrite a shard without the rows of some images; remove a shard without rows."""
    with Shard.from_path(path).open() as parquet:
        rows = [row for row in parquet.read().to_pylist() if row["image_id"] not in image_ids]
    if rows:
        write_shard(path, rows, recipe)
    else:
        path.unlink()


def read_recipe(path: Place) -> dict[str, Any] | None:
    """Return the recipe of a shard, or None if the file is not a whole shard of masks.

    Raises:
        DataError: the file cannot be read, so that nothing is known about it.
    """
    return read_shard(Shard.from_path(path), ())[0] if path.is_file() else None


def read_shard(
    shard: Shard, columns: Iterable[str]
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Return a shard's recipe and rows; (None, []) if the file is not a whole shard of masks.

    Columns that an earlier release did not write are missing in the rows.

    Raises:
        DataError: the file cannot be read, or its rows are damaged.
    """
    recipe = None
    try:
        with shard.open(few_columns=True) as parquet:
            schema = parquet.schema_arrow
            recipe = _recipe_from_metadata(schema.metadata or {})
            present = [name for name in columns if name.partition(".")[0] in schema.names]
            if recipe is None or not present:
                return recipe, []
            return recipe, parquet.read(columns=present).to_pylist()
    except DamagedShardError:
        if recipe is not None:  # the file contains masks, and its rows are damaged
            raise
        return None, []


def _recipe_from_metadata(metadata: Mapping[bytes, bytes]) -> dict[str, Any] | None:
    try:
        recipe = json.loads(metadata.get(METADATA_KEY, b""))
    except ValueError:
        return None
    return recipe if isinstance(recipe, dict) else None


def is_damaged(path: Place) -> bool:
    """Return whether a readable file is not a whole Parquet file."""
    try:
        with Shard.from_path(path).open():
            return False
    except DamagedShardError:
        return True


def parquet_files(folder: Place | str) -> list[Place]:
    """Return the Parquet files of a folder, from any source, without hidden (half-written) ones."""
    files = to_place(folder).glob("*.parquet")
    return sorted((p for p in files if not p.name.startswith(".")), key=str)


def shard_paths(folder: Place | str) -> list[Place]:
    """Return the finished shards of masks in a folder, without other Parquet files."""
    return [path for path in parquet_files(folder) if read_recipe(path) is not None]


def content_columns(content: Content | None) -> dict[str, Any]:
    """Return the columns that identify the content of a row's image."""
    if content is None:
        return {}
    return {
        "image_bytes": content.size,
        "image_mtime_ns": content.mtime_ns,
        "image_sha256": content.sha256,
    }


def content_from_row(row: Mapping[str, Any]) -> Content | None:
    """Return the content of a row's image, or None in shards of earlier releases."""
    if row.get("image_sha256") is None:
        return None
    return Content(row["image_bytes"], row["image_mtime_ns"], row["image_sha256"])
