"""Shards: their schema, their names, and files that are not shards."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pyarrow.parquet as pq
import pytest
from mask_rows import RECIPE, ellipses, image_row, sample_rows, write_rows

from sfss_ray import __version__
from sfss_ray.data.content import Content
from sfss_ray.errors import DataError
from sfss_ray.masks.bank.schema import (
    CODE_VERSION,
    METADATA_KEY,
    SCHEMA,
    as_stored,
    content_columns,
    content_from_row,
    drop_rows,
    has_shard_name,
    is_damaged,
    parquet_files,
    read_recipe,
    read_shard,
    shard_name,
    shard_paths,
    write_shard,
)
from sfss_ray.masks.bank.shards import Shard
from sfss_ray.masks.bank.store import MaskStore

CONTENT = ("image_bytes", "image_mtime_ns", "image_sha256", "imported_from")


@pytest.fixture
def rows() -> list[dict]:
    return sample_rows()


def test_pandas_reads_a_shard(rows, tmp_path: Path):
    frame = pandas.read_parquet(write_rows(tmp_path, rows))
    assert list(frame.columns) == [
        "image_id",
        "path",
        "height",
        "width",
        "masks",
        "error",
        *CONTENT,
    ]
    assert frame["image_id"].tolist() == [row["image_id"] for row in rows]
    assert frame["masks"][0][0]["counts"] == rows[0]["masks"][0]["counts"]
    assert frame["error"].isna().sum() == 19


def test_pyarrow_reads_a_shard_with_its_schema_and_recipe(rows, tmp_path: Path):
    path = write_rows(tmp_path, rows)
    table = pq.read_table(path)
    assert table.schema.equals(SCHEMA)
    assert table.to_pylist() == [row | dict.fromkeys(CONTENT) for row in rows]
    recipe = RECIPE | {CODE_VERSION: __version__}
    assert json.loads(table.schema.metadata[METADATA_KEY]) == recipe == read_recipe(path)


def test_columns_and_metadata_keys_are_those_of_earlier_releases():
    assert SCHEMA.names[:6] == ["image_id", "path", "height", "width", "masks", "error"]
    mask_fields = [field.name for field in SCHEMA.field("masks").type.value_type]
    assert mask_fields == [
        "counts",
        "area",
        "bbox",
        "predicted_iou",
        "stability_score",
        "point",
        "crop_box",
    ]
    assert (METADATA_KEY, CODE_VERSION) == (b"sfss_ray.masks", "code_version")


def test_writing_leaves_no_other_file(rows, tmp_path: Path):
    path = write_rows(tmp_path, rows)
    assert list(tmp_path.iterdir()) == [path]


def test_invalid_rows_are_not_written(tmp_path: Path):
    path = tmp_path / "a.parquet"
    with pytest.raises(Exception, match="tall"):
        write_shard(path, [image_row("a", []) | {"height": "tall"}], RECIPE)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_without_permission_to_commit(rows, tmp_path: Path):
    write_shard(tmp_path / "a.parquet", rows, RECIPE, may_commit=lambda: False)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_is_named_after_its_images():
    name = shard_name(["a", "b"])
    assert name == shard_name(iter(["a", "b"])) == "masks-7e18f737311b2dc3.parquet"
    assert len({name, shard_name(["ab"]), shard_name(["b", "a"]), shard_name(["a"])}) == 4
    assert has_shard_name(Path("/masks") / name)
    for other in ("masks-0.parquet", "masks-train.parquet", f"{name}.1", name.upper()):
        assert not has_shard_name(Path(other))


def test_unreadable_and_hidden_files_do_not_count(rows, tmp_path: Path):
    good = write_rows(tmp_path, rows[:2])
    data = good.read_bytes()
    (tmp_path / f".{good.name}.123").write_bytes(data)
    (tmp_path / ".hidden.parquet").write_bytes(data)
    (tmp_path / "half.parquet").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "folder.parquet").mkdir()
    pandas.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    assert MaskStore(tmp_path).ids() == ["drive/00", "drive/01"]
    assert shard_paths(tmp_path) == [good]
    names = [path.name for path in parquet_files(tmp_path)]
    assert names == sorted(
        ["empty.parquet", "folder.parquet", "half.parquet", "other.parquet", good.name]
    )
    for name in ("half", "empty", "folder", "other"):
        assert read_recipe(tmp_path / f"{name}.parquet") is None
    assert [is_damaged(tmp_path / f"{n}.parquet") for n in ("half", "empty", "other")] == [
        True,
        True,
        False,
    ]


def test_only_requested_columns_that_exist_are_read(rows, tmp_path: Path):
    path = write_rows(tmp_path, rows[:2])
    pq.write_table(pq.read_table(path).drop_columns(["image_sha256"]), path)
    recipe, columns = read_shard(Shard.from_path(path), ("image_id", "image_sha256", "error"))
    assert recipe == RECIPE | {CODE_VERSION: __version__}
    assert columns == [{"image_id": f"drive/0{k}", "error": None} for k in (0, 1)]


def test_damaged_rows_of_a_shard_are_an_error_with_its_name(rows, tmp_path: Path):
    path = write_rows(tmp_path, rows[:2])
    data = bytearray(path.read_bytes())
    data[8:400] = b"\xff" * 392
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{path.name}' is damaged .*make its masks again"):
        read_shard(Shard.from_path(path), ("image_id", "masks"))


def test_rows_are_dropped_and_a_shard_without_rows_is_removed(rows, tmp_path: Path):
    path = write_rows(tmp_path, rows[:3])
    drop_rows(path, {"drive/01", "other"}, RECIPE)
    assert pq.read_table(path)["image_id"].to_pylist() == ["drive/00", "drive/02"]
    drop_rows(path, {"drive/00", "drive/02"}, RECIPE)
    assert not path.exists()


def test_stored_rows_have_every_column_and_float32_scores():
    row = image_row("a", ellipses(0, number=1))
    row["masks"][0]["predicted_iou"] = 0.1
    (stored,) = as_stored([row])
    assert stored.keys() == set(SCHEMA.names)
    assert stored["masks"][0]["predicted_iou"] == pytest.approx(0.1)
    assert stored["masks"][0]["predicted_iou"] != 0.1
    assert stored["imported_from"] is None


def test_the_content_of_an_image_is_stored_in_columns():
    content = Content(10, 20, "ab" * 32)
    columns = content_columns(content)
    assert set(columns) == set(CONTENT) - {"imported_from"}
    assert content_from_row(columns) == content
    assert content_columns(None) == {}
    assert content_from_row({"image_id": "a"}) is None
    assert content_from_row(dict.fromkeys(CONTENT)) is None
