"""Reading of a folder of shards: masks by image id, and id maps painted from them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sfss_ray.data.content import Content
from sfss_ray.errors import DataError
from sfss_ray.masks.bank.cache import PaintedCache
from sfss_ray.masks.bank.geometry import mask_geometry
from sfss_ray.masks.bank.painted_runs import PaintedRuns
from sfss_ray.masks.bank.painting import paint_image
from sfss_ray.masks.bank.schema import EMBEDDING, content_from_row, read_shard
from sfss_ray.masks.bank.shards import (
    MovedRowError,
    Shard,
    list_shards,
    unreadable,
)
from sfss_ray.storage.places import ObjectPath, Place, address_of, to_place

_ROW_COLUMNS = ["image_id", "path", "height", "width", "masks", "error"]
_INDEX_COLUMNS = ["image_id", "error", "masks.list.element.area"]
_INDEX_COLUMNS += ["image_bytes", "image_mtime_ns", "image_sha256"]
_PAINT_COLUMNS = ["image_id", "height", "width"]
_PAINT_COLUMNS += [f"masks.list.element.{name}" for name in ("counts", "area", "bbox")]

# Shared by all stores of a process. A 2048x1024 image with 120 masks takes 100 to 130 kB, so that
# 2,000 to 2,600 of them fit. Images that do not fit are read and painted again.
PAINTED = PaintedCache(max_bytes=256 * 2**20)

_Result = TypeVar("_Result")


@dataclass
class _Index:
    """Locations of the rows by image id. If an image has two rows, the one with masks counts."""

    rows: dict[str, tuple[Shard, int]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    num_masks: dict[str, int] = field(default_factory=dict)
    contents: dict[str, Content] = field(default_factory=dict)
    recipe: dict[str, Any] | None = None

    def add(self, shard: Shard) -> None:
        """Add the rows of a shard; a file without masks is ignored."""
        recipe, rows = read_shard(shard, _INDEX_COLUMNS)
        self.recipe = self.recipe or recipe
        for row, columns in enumerate(rows):
            image_id, error, content = (
                columns["image_id"],
                columns["error"],
                content_from_row(columns),
            )
            if error is not None and image_id in self.rows and image_id not in self.errors:
                continue
            self.rows[image_id] = (shard, row)
            self.num_masks[image_id] = len(columns["masks"] or ())
            self.contents.pop(image_id, None)
            if content is not None:
                self.contents[image_id] = content
            self.errors.pop(image_id, None)
            if error is not None:
                self.errors[image_id] = error


class MaskStore:
    """Masks of a folder of images, by image id.

    Args:
        folder: of the Parquet shards: a path, or an address that pyarrow.fs opens
            (`s3://bucket/masks`, `gs://bucket/masks`, `file:///data/masks`).

    Attributes:
        location: the folder's place.
        folder: its path or address as text, which may contain a secret.
        recipe: what made the masks, from the metadata of the shards.
        errors: image_id -> why the image has no masks.
        contents: image_id -> content of the image file; without rows of earlier releases.

    Raises:
        DataError: the folder has no shard, has an unreadable one, or cannot be reached.
    """

    def __init__(self, folder: Place | str):
        self.location = to_place(folder)
        self.folder = address_of(self.location)
        self._read_index()

    def _read_index(self) -> None:
        """Locate all rows. The index is replaced as a whole, because other threads may be reading."""
        index = _Index()
        try:
            for shard in list_shards(self.location):
                index.add(shard)
            if index.recipe is None and isinstance(self.location, ObjectPath):
                self.location.require_bucket()
        except (OSError, pa.ArrowException) as error:
            raise unreadable(self.location, error) from error
        if index.recipe is None:
            raise DataError(
                f"no masks in {str(self.location)!r}: make them first with `sfss-ray masks`"
            )
        self._rows, self._num_masks, self.contents = index.rows, index.num_masks, index.contents
        self.recipe, self.errors = index.recipe, index.errors

    @property
    def num_masks(self) -> int:
        """Number of masks of all images."""
        return sum(self._num_masks.values())

    def local_shards(self) -> list[Path]:
        """Return the shards on local disks by name; none for a folder at an address."""
        if isinstance(self.location, ObjectPath):
            return []
        return sorted({Path(shard.path) for shard, _ in self._rows.values()})

    def remote_listing(self) -> list[str]:
        """Return 'NAME SIZE' of each shard at an address, by name; none for a local folder."""
        if not isinstance(self.location, ObjectPath):
            return []
        return sorted({f"{s.location.name} {s.size}" for s, _ in self._rows.values()})

    def count(self, image_ids: Iterable[str]) -> int:
        """Return the number of masks of some images; an image without a row has none."""
        return sum(self._num_masks.get(image_id, 0) for image_id in image_ids)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._rows

    def ids(self) -> list[str]:
        """Return all image ids, sorted."""
        return sorted(self._rows)

    def load(self, image_id: str) -> dict[str, Any]:
        """Return the row of an image: image_id, path, height, width, masks (list of dicts), error."""
        return self._read(image_id, lambda shard, row: _read_row(shard, row, image_id))

    def _read(self, image_id: str, read: Callable[[Shard, int], _Result]) -> _Result:
        """Read an image's row with `read`; try once more if its shard was rewritten in the meantime."""
        try:
            return read(*self._locate(image_id))
        except MovedRowError:
            self._read_index()
        try:
            return read(*self._locate(image_id))
        except MovedRowError as error:
            raise DataError(
                f"masks of image {image_id!r} in {str(self.location)!r} are being rewritten"
                " while they are read: wait until that is done, and open the folder again"
            ) from error

    def _locate(self, image_id: str) -> tuple[Shard, int]:
        if image_id not in self._rows:
            raise DataError(
                f"no masks of image {image_id!r} in {str(self.location)!r}: make them first"
                " with `sfss-ray masks`"
            )
        return self._rows[image_id]

    def id_map(
        self,
        image_id: str,
        window: tuple[int, int, int, int] | None = None,
        painting: Literal["fine", "coarse"] = "fine",
    ) -> np.ndarray:
        """Return the mask ids of a window (top, left, height, width), default the whole image.

        Args:
            image_id: of the image.
            window: in pixels, inside the image.
            painting: "fine" paints the smallest mask on top, "coarse" the largest.

        Returns:
            int32 (h, w), 0 = no mask. Mask k of the row has id k + 1 in every window.

        Raises:
            DataError: the image has no row, or its masks cannot be read.
            ConfigError: the window does not lie inside the image, or `painting` is unknown.
        """
        columns = None if window is None else range(window[1], window[1] + window[3])
        return self._painted(image_id, painting, columns).window(window)

    def geometry(self, image_id: str) -> NDArray[np.float32]:
        """Return the place and size of each mask of an image, (K + 1, 4) by id.

        See `mask_geometry`. Mask k of the row has id k + 1, painted "fine".

        Raises:
            DataError: the image has no row, or its masks cannot be read.
        """
        return mask_geometry(self._painted(image_id, "fine", None), self._num_masks[image_id])

    @property
    def has_embeddings(self) -> bool:
        """Whether its recipe stores an embedding with each mask."""
        return bool((self.recipe or {}).get("embeddings"))

    def embeddings(self, image_id: str) -> NDArray[np.float32]:
        """Return the mean embedding of each mask of an image, (K + 1, C) by id, zeros at 0.

        Raises:
            DataError: the image has no row, or its masks have no embeddings.
        """
        if not self.has_embeddings:
            raise DataError(
                f"masks in {str(self.location)!r} have no embeddings: make them again with"
                " masks.embeddings"
            )
        rows = self._read_embeddings(image_id)
        width = len(rows[0]) if rows else self._embedding_width
        return np.array([[0.0] * width, *rows], np.float32)

    def _read_embeddings(self, image_id: str) -> list[list[float]]:
        self._require_masks(image_id)
        return self._read(image_id, lambda shard, row: _read_embeddings(shard, row, image_id))

    @functools.cached_property
    def _embedding_width(self) -> int:
        """Numbers of an embedding, from the first image with a mask; 1 without any mask."""
        with_masks = next((i for i in self.ids() if self._num_masks.get(i)), None)
        return len(self._read_embeddings(with_masks)[0]) if with_masks else 1

    def id_crop(
        self,
        image_id: str,
        rows: np.ndarray,
        columns: np.ndarray,
        painting: Literal["fine", "coarse"] = "fine",
    ) -> np.ndarray:
        """Return the mask ids of the pixels (rows[i], columns[j]): a zoomed, mirrored crop.

        Args:
            image_id: of the image.
            rows: (h,) image rows in ascending order; see PaintedRuns.at.
            columns: (w,) image columns in any order.
            painting: "fine" paints the smallest mask on top, "coarse" the largest.

        Returns:
            int32 (h, w), 0 = no mask.

        Raises:
            DataError: the image has no row, or its masks cannot be read.
            ConfigError: a pixel does not lie inside the image, or the rows are not in order.
        """
        required = range(int(columns.min()), int(columns.max()) + 1) if len(columns) else range(0)
        return self._painted(image_id, painting, required).at(rows, columns)

    def _require_masks(self, image_id: str) -> None:
        """Raise DataError for an image whose row says why it has no masks."""
        if image_id in self.errors:
            raise DataError(
                f"image {image_id!r} has no masks in {str(self.location)!r}"
                f" ({self.errors[image_id]}): repair the image, and make its masks again"
            )

    def _painted(self, image_id: str, painting: str, columns: range | None) -> PaintedRuns:
        """Return the painted image, or only its `columns` if the cache is full."""
        self._require_masks(image_id)

        def paint(shard: Shard, row: int) -> PaintedRuns:
            paint_columns = partial(_paint_row, shard, row, image_id, painting)
            return PAINTED.get(
                (shard, row, painting),
                lambda: paint_columns(None),
                None if columns is None else lambda: paint_columns(columns),
            )

        return self._read(image_id, paint)


def _read_row(shard: Shard, row: int, image_id: str) -> dict[str, Any]:
    return _row_table(shard, row, image_id, _ROW_COLUMNS).to_pylist()[0]


def _read_embeddings(shard: Shard, row: int, image_id: str) -> list[list[float]]:
    column = f"masks.list.element.{EMBEDDING}.list.element"
    (masks,) = _row_table(shard, row, image_id, ["image_id", column])["masks"].to_pylist()
    return [mask[EMBEDDING] for mask in masks]


def _row_table(shard: Shard, row: int, image_id: str, columns: list[str] | None = None) -> pa.Table:
    """Return some columns of an image's row, as a table of one row.

    Raises:
        MovedRowError: the row now belongs to another image.
    """
    with shard.open() as parquet:
        group = 0
        while group < parquet.num_row_groups and row >= (
            rows := parquet.metadata.row_group(group).num_rows
        ):
            group, row = group + 1, row - rows
        exists = group < parquet.num_row_groups
        table = parquet.read_row_group(group, columns).slice(row, 1) if exists else None
    if table is None or table["image_id"][0].as_py() != image_id:
        raise MovedRowError(f"masks file {shard.path!r} was rewritten: open its folder again")
    return table


def _paint_row(
    shard: Shard, row: int, image_id: str, painting: str, columns: range | None
) -> PaintedRuns:
    """Paint an image, or at least those of `columns` that lie in the image."""
    table = _row_table(shard, row, image_id, _PAINT_COLUMNS)
    masks = table["masks"].chunk(0).flatten()
    return paint_image(
        masks.field("counts").to_pylist(),
        masks.field("area").to_numpy(),
        masks.field("bbox").flatten().to_numpy().reshape(-1, 4),
        (table["height"][0].as_py(), table["width"][0].as_py()),
        painting,
        columns,
    )
