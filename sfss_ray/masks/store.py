"""The Parquet schema of masks, in one place, and the reader of a folder of shards.

A row per image, also for an image without masks or one that could not be read (`error` says why).
Masks keep their overlaps and scores; which one is on top is decided when an id map is painted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sfss_ray.errors import DataError
from sfss_ray.masks.cache import PaintedCache
from sfss_ray.masks.painting import PaintedRuns, paint_order, paint_runs
from sfss_ray.masks.places import Shard, folder_address, list_shards, without_secret
from sfss_ray.version import __version__

METADATA_KEY = b"sfss_ray.masks"
CODE_VERSION = "code_version"
"""Key of the metadata that says which release wrote a shard; it does not decide what masks are like."""
SHARD_PREFIX = "masks-"
_ROWS_PER_GROUP = 8  # a random row is read with its group: small groups suit training
_TO_PAINT = ["height", "width", "masks.list.element.counts", "masks.list.element.area"]

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
    ]
)


def shard_name(image_ids: Iterable[str]) -> str:
    """File name of the shard with these images: the same images make the same file again."""
    digest = hashlib.sha256("\n".join(image_ids).encode()).hexdigest()[:16]
    return f"{SHARD_PREFIX}{digest}.parquet"


def write_shard(path: Path, rows: list[dict[str, Any]], recipe: Mapping[str, Any]) -> None:
    """Write rows of SCHEMA as one shard, whole or not at all (temporary name, then rename)."""
    made_by = json.dumps(dict(recipe) | {CODE_VERSION: __version__}, sort_keys=True)
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({METADATA_KEY: made_by}))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    # No string comes twice: without dictionaries the file is smaller and faster to read.
    options = {"compression": "zstd", "use_dictionary": False}
    pq.write_table(table, temporary, row_group_size=_ROWS_PER_GROUP, **options)
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


def read_recipe(path: Path) -> dict[str, Any] | None:
    """How a shard was made; None for a file that is no readable shard of masks."""
    return recipe_of(Shard.at(path)) if path.exists() else None


def recipe_of(shard: Shard) -> dict[str, Any] | None:
    """As `read_recipe`, of a shard on any file system."""
    try:
        with shard.opened() as parquet:
            metadata = parquet.schema_arrow.metadata or {}
        return json.loads(metadata[METADATA_KEY])
    except (DataError, KeyError, ValueError):
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
        self._place: dict[str, tuple[Shard, int]] = {}
        self.errors: dict[str, str] = {}
        self.num_masks = 0
        try:
            self.recipe = self._index_all()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"masks {without_secret(self.folder)!r}: {error}") from error

    def _index_all(self) -> dict[str, Any]:
        recipe = None
        for shard in list_shards(self.folder):
            made_by = recipe_of(shard)
            if made_by is not None:
                recipe = recipe or made_by
                self._index(shard)
        if recipe is None:
            raise DataError(
                f"no masks in {without_secret(self.folder)!r}: make them first with `sfss-ray masks`"
            )
        return recipe

    def _index(self, shard: Shard) -> None:
        with shard.opened() as parquet:
            table = parquet.read(columns=["image_id", "error", "masks.list.element.area"])
        for row, (image_id, error) in enumerate(
            zip(table["image_id"].to_pylist(), table["error"].to_pylist(), strict=True)
        ):
            self._place[image_id] = (shard, row)
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
        return _read_row(*self._found(image_id))

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
        return self._painted(image_id, painting).window(window)

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
        return self._painted(image_id, painting).at(rows, columns)

    def _painted(self, image_id: str, painting: str) -> PaintedRuns:
        shard, row = self._found(image_id)
        return PAINTED.get((shard, row, painting), lambda: _paint_row(shard, row, painting))


def _read_row(shard: Shard, row: int, columns: list[str] | None = None) -> dict[str, Any]:
    with shard.opened() as parquet:
        group, offset = divmod(row, _ROWS_PER_GROUP)
        return parquet.read_row_group(group, columns).slice(offset, 1).to_pylist()[0]


def _paint_row(shard: Shard, row: int, painting: str) -> PaintedRuns:
    image = _read_row(shard, row, _TO_PAINT)
    order = paint_order([mask["area"] for mask in image["masks"]], painting)
    texts = [image["masks"][k]["counts"] for k in order]
    return paint_runs(texts, order + 1, (image["height"], image["width"]))
