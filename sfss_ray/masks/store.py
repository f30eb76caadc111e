"""The Parquet schema of masks, in one place, and the reader of a folder of shards.

A row per image, also for an image without masks or one that could not be read (`error` says why).
Masks keep their overlaps and scores; which one is on top is decided when an id map is painted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sfss_ray.errors import DataError
from sfss_ray.masks.rle import paint_id_map, paint_order

METADATA_KEY = b"sfss_ray.masks"
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
    schema = SCHEMA.with_metadata({METADATA_KEY: json.dumps(dict(recipe), sort_keys=True)})
    table = pa.Table.from_pylist(rows, schema=schema)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, temporary, compression="zstd", row_group_size=_ROWS_PER_GROUP)
    temporary.replace(path)


def read_recipe(path: Path) -> dict[str, Any] | None:
    """How a shard was made; None for a file that is no readable shard of masks."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        return json.loads(metadata[METADATA_KEY])
    except (OSError, pa.ArrowInvalid, KeyError, ValueError):
        return None


def shards(folder: Path | str) -> list[Path]:
    """Finished shards of a folder; hidden (half-written) files do not count."""
    return sorted(p for p in Path(folder).glob("*.parquet") if not p.name.startswith("."))


class MaskStore:
    """Masks of a folder of images, by image id.

    Args:
        folder: where the Parquet shards lie.

    Raises:
        DataError: the folder has no shard.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        files = [p for p in shards(folder) if read_recipe(p) is not None]
        if not files:
            raise DataError(f"no masks in {str(folder)!r}: make them first with `sfss-ray masks`")
        self.recipe = read_recipe(files[0]) or {}
        self._place: dict[str, tuple[Path, int, int]] = {}
        self.errors: dict[str, str] = {}
        self.num_masks = 0
        for file in files:
            self._index(file)

    def _index(self, file: Path) -> None:
        # A shard that was made anew has the same name: what was cached of the old one is not its.
        made = file.stat().st_mtime_ns
        with _opened(file) as parquet:
            table = parquet.read(columns=["image_id", "error", "masks.list.element.area"])
        for row, (image_id, error) in enumerate(
            zip(table["image_id"].to_pylist(), table["error"].to_pylist(), strict=True)
        ):
            self._place[image_id] = (file, made, row)
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
                f"no masks of image {image_id!r} in {str(self.folder)!r}: make them first with"
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


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[pq.ParquetFile]:
    """A shard, open; what Arrow says of damaged bytes becomes a DataError that names the file."""
    try:
        with pq.ParquetFile(file) as parquet:
            yield parquet
    except (OSError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise DataError(
            f"masks file {str(file)!r} is damaged ({reason}): remove it and make its masks again"
        ) from error


@lru_cache(maxsize=_CACHED_IMAGES)
def _read_row(file: Path, made: int, row: int) -> dict[str, Any]:
    with _opened(file) as parquet:
        group, offset = divmod(row, _ROWS_PER_GROUP)
        return parquet.read_row_group(group).slice(offset, 1).to_pylist()[0]
