"""The Parquet store of masks, against pycocotools and plain painting."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco

from sfss_ray import __version__
from sfss_ray.config import AugmentConfig
from sfss_ray.data.augment import draw_geometry
from sfss_ray.errors import ConfigError, DataError
from sfss_ray.masks.bank import store as store_module
from sfss_ray.masks.bank.cache import PaintedCache
from sfss_ray.masks.bank.schema import (
    CODE_VERSION,
    METADATA_KEY,
    SCHEMA,
    drop_rows,
    read_recipe,
    shard_name,
    shard_paths,
    write_shard,
)
from sfss_ray.masks.bank.store import MaskStore

RECIPE = {"source": "felzenszwalb", "sam_type": "", "knobs": {"felzenszwalb_scale": 300.0}}
SIZE = (20, 30)


def blobs(seed: int, number: int = 7) -> list[np.ndarray]:
    """Overlapping ellipses, (H, W) bool each."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    found = []
    for _ in range(number):
        cy, cx = rng.uniform(0, SIZE[0]), rng.uniform(0, SIZE[1])
        ry, rx = rng.uniform(3, 9, 2)
        found.append(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1)
    return found


def record(mask: np.ndarray) -> dict:
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "counts": rle["counts"].decode(),
        "area": int(mask.sum()),
        "bbox": [int(v) for v in coco.toBbox(rle)],
        "predicted_iou": 0.5,
        "stability_score": 0.25,
        "point": [1.5, 2.5],
        "crop_box": [0, 0, SIZE[1], SIZE[0]],
    }


def row(image_id: str, masks: list[np.ndarray], error: str | None = None) -> dict:
    height, width = SIZE if error is None else (0, 0)
    return {
        "image_id": image_id,
        "path": f"/images/{image_id}.png",
        "height": height,
        "width": width,
        "masks": [record(mask) for mask in masks],
        "error": error,
    }


def write(folder: Path, rows: list[dict], recipe=RECIPE) -> Path:
    path = folder / shard_name(r["image_id"] for r in rows)
    write_shard(path, rows, recipe)
    return path


@pytest.fixture
def rows() -> list[dict]:
    """More rows than a row group has: some with masks, one without, one unreadable."""
    made = [row(f"drive/{i:02}", blobs(i)) for i in range(18)]
    return [*made, row("empty", []), row("broken", [], error="the file is empty (0 bytes)")]


@pytest.fixture
def store(rows, tmp_path: Path) -> MaskStore:
    write(tmp_path, rows[:11])
    write(tmp_path, rows[11:])
    return MaskStore(tmp_path)


def painted(image_row: dict, painting: str) -> np.ndarray:
    """The id map by decoding every mask and painting it whole."""
    canvas = np.zeros(SIZE, np.int32)
    masks = image_row["masks"]
    sign = -1 if painting == "fine" else 1
    for k in sorted(range(len(masks)), key=lambda k: (sign * masks[k]["area"], k)):
        mask = coco.decode({"counts": masks[k]["counts"].encode(), "size": list(SIZE)})
        canvas[mask > 0] = k + 1
    return canvas


def test_rows_come_back_as_they_were(store, rows):
    assert [store.load(r["image_id"]) for r in rows] == rows


def test_the_store_knows_what_it_holds(store, rows):
    assert len(store) == 20
    assert store.ids() == sorted(r["image_id"] for r in rows)
    assert "drive/03" in store
    assert "drive/99" not in store
    assert store.num_masks == 18 * 7
    assert store.recipe == RECIPE | {CODE_VERSION: __version__}


def test_unreadable_images_are_rows_with_the_reason(store):
    assert store.errors == {"broken": "the file is empty (0 bytes)"}
    assert "broken" in store
    assert store.id_map("broken").shape == (0, 0)


def test_images_without_masks_have_an_empty_map(store):
    assert store.id_map("empty").shape == SIZE
    assert not store.id_map("empty").any()


@pytest.mark.parametrize("painting", ["fine", "coarse"])
def test_id_maps_are_those_of_painting_whole_masks(store, rows, painting):
    for image_row in rows[:18]:
        ids = store.id_map(image_row["image_id"], painting=painting)
        assert ids.dtype == np.int32
        assert np.array_equal(ids, painted(image_row, painting))


def test_fine_and_coarse_differ(store):
    assert not np.array_equal(store.id_map("drive/00"), store.id_map("drive/00", None, "coarse"))
    with pytest.raises(ConfigError, match="'fine' and 'coarse'"):
        store.id_map("drive/00", painting="medium")


@pytest.mark.parametrize("window", [(0, 0, 20, 30), (3, 5, 10, 7), (19, 29, 1, 1), (0, 12, 20, 1)])
@pytest.mark.parametrize("painting", ["fine", "coarse"])
def test_a_window_is_a_crop_of_the_whole(store, window, painting):
    top, left, height, width = window
    for image_id in ("drive/00", "drive/17", "empty"):
        whole = store.id_map(image_id, painting=painting)
        part = store.id_map(image_id, window, painting)
        assert np.array_equal(part, whole[top : top + height, left : left + width])


@pytest.mark.parametrize("painting", ["fine", "coarse"])
def test_zoomed_mirrored_crops_are_those_of_the_whole(store, painting):
    rng = np.random.default_rng(3)
    for image_id in ("drive/00", "drive/17", "empty"):
        whole = store.id_map(image_id, painting=painting)
        for _ in range(5):
            geometry = draw_geometry(AugmentConfig(crop_size=(32, 32)), SIZE, rng)
            crop = store.id_crop(image_id, *geometry.nearest_pixels(SIZE), painting)
            assert np.array_equal(crop, geometry.apply_to_ids(whole, SIZE))


def test_windows_outside_the_image_are_refused(store):
    with pytest.raises(ConfigError, match="does not lie inside"):
        store.id_map("drive/00", (0, 0, 21, 30))


def test_unknown_images_are_named(store, tmp_path: Path):
    with pytest.raises(DataError, match=r"no masks of image 'x' in .*make them first"):
        store.load("x")


def test_folders_without_masks_are_refused(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"no masks in .*sfss-ray masks"):
            MaskStore(folder)


def test_unreadable_and_hidden_shards_do_not_count(rows, tmp_path: Path):
    good = write(tmp_path, rows[:2])
    data = good.read_bytes()
    (tmp_path / f".{good.name}.123").write_bytes(data)
    (tmp_path / ".hidden.parquet").write_bytes(data)
    (tmp_path / "half.parquet").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "folder.parquet").mkdir()
    pandas.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    assert MaskStore(tmp_path).ids() == ["drive/00", "drive/01"]
    assert good in shard_paths(tmp_path)
    assert tmp_path / ".hidden.parquet" not in shard_paths(tmp_path)
    for name in ("half", "empty", "folder", "other"):
        assert read_recipe(tmp_path / f"{name}.parquet") is None


def test_masks_made_anew_are_read_anew(rows, tmp_path: Path):
    path = write(tmp_path, rows[:1])
    first = MaskStore(tmp_path).id_map("drive/00")
    write(tmp_path, [row("drive/00", blobs(99))])
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
    second = MaskStore(tmp_path).id_map("drive/00")
    assert not np.array_equal(first, second)
    assert np.array_equal(second, painted(row("drive/00", blobs(99)), "fine"))


def test_a_store_opened_before_its_shard_was_made_anew_leaves_nothing_stale(tmp_path: Path):
    """What the old store has held, and what it reads later, is not what a new store serves."""
    ids = ["drive/00", "drive/01"]
    path = write(tmp_path, [row(i, blobs(k)) for k, i in enumerate(ids)])
    old = MaskStore(tmp_path)
    old.id_map(ids[0])
    new_rows = [row(i, blobs(50 + k, number=4)) for k, i in enumerate(ids)]
    assert write(tmp_path, new_rows) == path
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))
    old.id_map(ids[1])
    new = MaskStore(tmp_path)
    for image_row in new_rows:
        assert new.load(image_row["image_id"]) == image_row
        for painting in ("fine", "coarse"):
            expected = painted(image_row, painting)
            assert np.array_equal(new.id_map(image_row["image_id"], painting=painting), expected)
            crop = new.id_crop(image_row["image_id"], np.arange(9), np.arange(30)[::-2], painting)
            assert np.array_equal(crop, expected[:9, ::-2])


def test_an_open_store_follows_rows_that_move(rows, tmp_path: Path):
    """A row that went from the front of its shard moves all others there."""
    path = write(tmp_path, rows[:11])
    store = MaskStore(tmp_path)
    drop_rows(path, {"drive/00"}, RECIPE)
    for painting in ("fine", "coarse"):
        assert np.array_equal(store.id_map("drive/01", None, painting), painted(rows[1], painting))
    assert [store.load(r["image_id"]) for r in rows[1:11]] == rows[1:11]
    with pytest.raises(DataError, match="no masks of image 'drive/00'"):
        store.load("drive/00")
    store = MaskStore(tmp_path)
    write_shard(path, rows[10:11], RECIPE)
    write(tmp_path, rows[1:3])
    assert store.load("drive/10") == rows[10], "it was in the last row group"
    assert store.load("drive/02") == rows[2], "in another shard by now"


def test_rows_that_move_again_and_again_are_an_error(rows, tmp_path: Path, monkeypatch):
    path = write(tmp_path, rows[:2])
    store = MaskStore(tmp_path)
    write_shard(path, rows[1:2], RECIPE)
    monkeypatch.setattr(store, "_look", lambda: None)
    with pytest.raises(DataError, match=r"'drive/00' .* are being made anew while they are read"):
        store.load("drive/00")


def test_maps_are_right_however_little_is_held(store, rows, monkeypatch):
    monkeypatch.setattr(store_module, "PAINTED", PaintedCache(2**30))
    whole = [store.id_map(r["image_id"]) for r in rows[:18]]
    each = store_module.PAINTED.held_bytes // len(store_module.PAINTED)
    for images in (0, 1, 5):
        cache = PaintedCache(images * each + each // 2)
        monkeypatch.setattr(store_module, "PAINTED", cache)
        for _ in range(2):
            for k in np.random.default_rng(images).permutation(18):
                assert np.array_equal(store.id_map(rows[k]["image_id"]), whole[k])
                assert cache.held_bytes <= cache.most_bytes
        assert abs(len(cache) - images) <= 1


@pytest.mark.parametrize("painting", ["fine", "coarse"])
def test_crops_are_right_where_no_image_more_is_held(store, rows, monkeypatch, painting):
    """Only the columns that a crop needs are painted then."""
    cache = PaintedCache(1000)
    monkeypatch.setattr(store_module, "PAINTED", cache)
    rng, zoomed = np.random.default_rng(4), AugmentConfig(crop_size=(32, 32), scale_range=(3, 5))
    for image_row in rows[:18] * 2:
        expected = painted(image_row, painting)
        geometry = draw_geometry(zoomed, SIZE, rng)
        crop = store.id_crop(image_row["image_id"], *geometry.nearest_pixels(SIZE), painting)
        assert np.array_equal(crop, geometry.apply_to_ids(expected, SIZE))
        window = store.id_map(image_row["image_id"], (2, 11, 9, 6), painting)
        assert np.array_equal(window, expected[2:11, 11:17])
    assert 1 <= len(cache) <= 3
    none = np.arange(0)
    assert store.id_crop("drive/00", np.arange(5), none, painting).shape == (5, 0)
    with pytest.raises(ConfigError, match="columns 28 to 32"):
        store.id_crop("drive/03", np.arange(5), np.arange(28, 33), painting)


def test_shards_with_other_row_groups_are_read(rows, tmp_path: Path):
    """Those of former releases had eight rows each, those of other writers any number."""
    path = write(tmp_path, rows[:11])
    table = pq.read_table(path)
    for size in (1, 3, 8, 100):
        pq.write_table(table, path, row_group_size=size)
        store = MaskStore(tmp_path)
        assert [store.load(r["image_id"]) for r in rows[:11]] == rows[:11]


def test_painted_images_are_held_and_not_read_again(rows, tmp_path: Path):
    path = write(tmp_path, rows[:2])
    store = MaskStore(tmp_path)
    fine, coarse = (store.id_map("drive/00", None, p) for p in ("fine", "coarse"))
    path.unlink()
    assert np.array_equal(store.id_map("drive/00"), fine)
    assert np.array_equal(MaskStore.id_map(store, "drive/00", painting="coarse"), coarse)
    with pytest.raises((OSError, DataError)):  # not held: read, and the file is gone
        store.id_map("drive/01")


def test_what_a_caller_does_to_a_map_does_not_come_back(store, rows):
    store.id_map("drive/00")[:] = 99
    store.load("drive/00")["masks"].clear()
    assert np.array_equal(store.id_map("drive/00"), painted(rows[0], "fine"))
    assert store.load("drive/00") == rows[0]


CONTENT = ("image_bytes", "image_mtime_ns", "image_sha256", "imported_from")


def test_shards_of_former_releases_are_read(rows, tmp_path: Path):
    """Without the columns that say what an image held."""
    path = write(tmp_path, rows)
    former = pq.read_table(path).drop_columns(list(CONTENT))
    pq.write_table(former, path)
    store = MaskStore(tmp_path)
    assert [store.load(r["image_id"]) for r in rows] == rows
    assert store.contents == {}


def test_pandas_reads_a_shard(rows, tmp_path: Path):
    frame = pandas.read_parquet(write(tmp_path, rows))
    assert list(frame.columns) == [
        "image_id",
        "path",
        "height",
        "width",
        "masks",
        "error",
        *CONTENT,
    ]
    assert frame["image_id"].tolist() == [r["image_id"] for r in rows]
    assert frame["masks"][0][0]["counts"] == rows[0]["masks"][0]["counts"]
    assert frame["error"].isna().sum() == 19


def test_pyarrow_reads_a_shard_with_its_schema_and_recipe(rows, tmp_path: Path):
    path = write(tmp_path, rows)
    table = pq.read_table(path)
    assert table.schema.equals(SCHEMA)
    assert table.to_pylist() == [row | dict.fromkeys(CONTENT) for row in rows]
    recipe = RECIPE | {CODE_VERSION: __version__}
    assert json.loads(table.schema.metadata[METADATA_KEY]) == recipe == read_recipe(path)


def test_writing_leaves_nothing_else(rows, tmp_path: Path):
    path = write(tmp_path, rows)
    assert list(tmp_path.iterdir()) == [path]


def test_rows_of_another_kind_are_not_written(tmp_path: Path):
    path = tmp_path / "a.parquet"
    with pytest.raises(Exception, match="tall"):
        write_shard(path, [row("a", []) | {"height": "tall"}], RECIPE)
    assert not path.exists()


def test_a_shard_is_named_after_its_images():
    name = shard_name(["a", "b"])
    assert name == shard_name(iter(["a", "b"])) == "masks-7e18f737311b2dc3.parquet"
    assert len({name, shard_name(["ab"]), shard_name(["b", "a"]), shard_name(["a"])}) == 4
