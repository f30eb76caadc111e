"""The reader of a folder of shards: masks by image id, id maps painted from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa

from sfss_ray.data.content import Content
from sfss_ray.errors import DataError
from sfss_ray.masks.bank.cache import PaintedCache
from sfss_ray.masks.bank.painting import PaintedRuns, paint_image
from sfss_ray.masks.bank.schema import content_of, read_shard
from sfss_ray.masks.bank.shards import (
    MovedRowError,
    Shard,
    folder_address,
    is_address,
    list_shards,
    unreachable,
    without_secret,
)

_ROW = ["image_id", "path", "height", "width", "masks", "error"]
_INDEXED = ["image_id", "error", "masks.list.element.area"]
_INDEXED += ["image_bytes", "image_mtime_ns", "image_sha256"]
_TO_PAINT = ["image_id", "height", "width"]
_TO_PAINT += [f"masks.list.element.{name}" for name in ("counts", "area", "bbox")]

# One for all stores of a process. A 2048x1024 image with 120 masks takes 100 to 130 kB, so that
# 2,000 to 2,600 of them fit; one that does not is read and painted again.
PAINTED = PaintedCache(most_bytes=256 * 2**20)

_Read = TypeVar("_Read")


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

    def remote_listing(self) -> list[str]:
        """'NAME SIZE' of each shard behind an address, by name; none of a folder of this machine."""
        if not is_address(self.folder):
            return []
        return sorted({f"{Path(s.path).name} {s.size}" for s, _ in self._place.values()})

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
