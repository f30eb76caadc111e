"""The store of masks against the rows that were written and plain painting."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from mask_rows import (
    RECIPE,
    SIZE,
    ellipses,
    image_row,
    painted_row,
    sample_rows,
    write_rows,
)

from sfss_ray import __version__
from sfss_ray.config import AugmentConfig
from sfss_ray.data.augment import draw_geometry
from sfss_ray.errors import ConfigError, DataError
from sfss_ray.masks.bank import store as store_module
from sfss_ray.masks.bank.cache import PaintedCache
from sfss_ray.masks.bank.schema import CODE_VERSION, drop_rows, write_shard
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.storage.places import address_of, to_place


@pytest.fixture
def rows() -> list[dict]:
    return sample_rows()


@pytest.fixture
def store(rows, tmp_path: Path) -> MaskStore:
    write_rows(tmp_path, rows[:11])
    write_rows(tmp_path, rows[11:])
    return MaskStore(tmp_path)


def make_newer(path: Path) -> None:
    """Change the time of a file by a nanosecond, as a slower test would."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def test_rows_are_read_as_they_were_written(store, rows):
    assert [store.load(row["image_id"]) for row in rows] == rows


def test_the_store_describes_its_folder(store, rows):
    assert len(store) == 20
    assert store.ids() == sorted(row["image_id"] for row in rows)
    assert "drive/03" in store
    assert "drive/99" not in store
    assert store.num_masks == 18 * 7
    assert store.count(["drive/00", "empty", "drive/99", "drive/01"]) == 14
    assert store.recipe == RECIPE | {CODE_VERSION: __version__}


def test_unreadable_images_have_rows_with_the_reason(store):
    assert store.errors == {"broken": "the file is empty (0 bytes)"}
    assert "broken" in store
    assert store.load("broken")["masks"] == []
    for read in (store.id_map, store.geometry):
        with pytest.raises(DataError, match=r"'broken' has no masks .*the file is empty"):
            read("broken")


def test_images_without_masks_have_an_empty_map(store):
    assert store.id_map("empty").shape == SIZE
    assert not store.id_map("empty").any()


@pytest.mark.parametrize("painting", ["fine", "coarse"])
def test_id_maps_are_those_of_painting_whole_masks(store, rows, painting):
    for row in rows[:18]:
        ids = store.id_map(row["image_id"], painting=painting)
        assert ids.dtype == np.int32
        assert np.array_equal(ids, painted_row(row, painting))


def test_fine_and_coarse_differ(store):
    assert not np.array_equal(store.id_map("drive/00"), store.id_map("drive/00", None, "coarse"))
    with pytest.raises(ConfigError, match="'fine' and 'coarse'"):
        store.id_map("drive/00", painting="medium")


@pytest.mark.parametrize("window", [(0, 0, 20, 30), (3, 5, 10, 7), (19, 29, 1, 1), (0, 12, 20, 1)])
@pytest.mark.parametrize("painting", ["fine", "coarse"])
def test_a_window_is_a_crop_of_the_whole_map(store, window, painting):
    top, left, height, width = window
    for image_id in ("drive/00", "drive/17", "empty"):
        full_map = store.id_map(image_id, painting=painting)
        crop = store.id_map(image_id, window, painting)
        assert np.array_equal(crop, full_map[top : top + height, left : left + width])


@pytest.mark.parametrize("painting", ["fine", "coarse"])
def test_zoomed_mirrored_crops_are_those_of_the_whole_map(store, painting):
    rng = np.random.default_rng(3)
    for image_id in ("drive/00", "drive/17", "empty"):
        full_map = store.id_map(image_id, painting=painting)
        for _ in range(5):
            geometry = draw_geometry(AugmentConfig(crop_size=(32, 32)), SIZE, rng)
            crop = store.id_crop(image_id, *geometry.nearest_pixels(SIZE), painting)
            assert np.array_equal(crop, geometry.apply_to_ids(full_map, SIZE))


def test_windows_outside_the_image_are_refused(store):
    with pytest.raises(ConfigError, match="does not lie inside"):
        store.id_map("drive/00", (0, 0, 21, 30))


def test_unknown_images_are_named(store):
    with pytest.raises(DataError, match=r"no masks of image 'x' in .*make them first"):
        store.load("x")


def test_folders_without_masks_are_refused(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"no masks in .*sfss-ray masks"):
            MaskStore(folder)


def test_rewritten_masks_are_read_again(rows, tmp_path: Path):
    path = write_rows(tmp_path, rows[:1])
    old_map = MaskStore(tmp_path).id_map("drive/00")
    new_row = image_row("drive/00", ellipses(99))
    write_rows(tmp_path, [new_row])
    make_newer(path)
    new_map = MaskStore(tmp_path).id_map("drive/00")
    assert not np.array_equal(old_map, new_map)
    assert np.array_equal(new_map, painted_row(new_row, "fine"))


def test_an_old_store_leaves_nothing_stale_in_the_cache(tmp_path: Path):
    """A new store does not return what an old store painted before or after the rewrite."""
    image_ids = ["drive/00", "drive/01"]
    path = write_rows(tmp_path, [image_row(i, ellipses(k)) for k, i in enumerate(image_ids)])
    old = MaskStore(tmp_path)
    old.id_map(image_ids[0])
    new_rows = [image_row(i, ellipses(50 + k, number=4)) for k, i in enumerate(image_ids)]
    assert write_rows(tmp_path, new_rows) == path
    make_newer(path)
    old.id_map(image_ids[1])
    new = MaskStore(tmp_path)
    for row in new_rows:
        assert new.load(row["image_id"]) == row
        for painting in ("fine", "coarse"):
            expected = painted_row(row, painting)
            assert np.array_equal(new.id_map(row["image_id"], painting=painting), expected)
            crop = new.id_crop(row["image_id"], np.arange(9), np.arange(30)[::-2], painting)
            assert np.array_equal(crop, expected[:9, ::-2])


def test_an_open_store_follows_rows_that_move(rows, tmp_path: Path):
    """If the first row of a shard is dropped, all other rows move."""
    path = write_rows(tmp_path, rows[:11])
    store = MaskStore(tmp_path)
    drop_rows(path, {"drive/00"}, RECIPE)
    for painting in ("fine", "coarse"):
        id_map = store.id_map("drive/01", None, painting)
        assert np.array_equal(id_map, painted_row(rows[1], painting))
    assert [store.load(row["image_id"]) for row in rows[1:11]] == rows[1:11]
    with pytest.raises(DataError, match="no masks of image 'drive/00'"):
        store.load("drive/00")
    store = MaskStore(tmp_path)
    write_shard(path, rows[10:11], RECIPE)
    write_rows(tmp_path, rows[1:3])
    assert store.load("drive/10") == rows[10], "it was in the last row group"
    assert store.load("drive/02") == rows[2], "it moved to another shard"


def test_rows_that_move_again_and_again_are_an_error(rows, tmp_path: Path, monkeypatch):
    path = write_rows(tmp_path, rows[:2])
    store = MaskStore(tmp_path)
    write_shard(path, rows[1:2], RECIPE)
    monkeypatch.setattr(store, "_read_index", lambda: None)
    with pytest.raises(DataError, match=r"'drive/00' .* are being rewritten while they are read"):
        store.load("drive/00")


def test_maps_do_not_depend_on_the_size_of_the_cache(store, rows, monkeypatch):
    monkeypatch.setattr(store_module, "PAINTED", PaintedCache(2**30))
    expected = [store.id_map(row["image_id"]) for row in rows[:18]]
    mean_bytes = store_module.PAINTED.nbytes // len(store_module.PAINTED)
    for num_images in (0, 1, 5):
        cache = PaintedCache(num_images * mean_bytes + mean_bytes // 2)
        monkeypatch.setattr(store_module, "PAINTED", cache)
        for _ in range(2):
            for k in np.random.default_rng(num_images).permutation(18):
                assert np.array_equal(store.id_map(rows[k]["image_id"]), expected[k])
                assert cache.nbytes <= cache.max_bytes
        assert abs(len(cache) - num_images) <= 1


@pytest.mark.parametrize("painting", ["fine", "coarse"])
def test_crops_are_right_if_the_cache_is_full(store, rows, monkeypatch, painting):
    """Then only the columns of the crop are painted."""
    cache = PaintedCache(1000)
    monkeypatch.setattr(store_module, "PAINTED", cache)
    rng, zoomed = np.random.default_rng(4), AugmentConfig(crop_size=(32, 32), scale_range=(3, 5))
    for row in rows[:18] * 2:
        expected = painted_row(row, painting)
        geometry = draw_geometry(zoomed, SIZE, rng)
        crop = store.id_crop(row["image_id"], *geometry.nearest_pixels(SIZE), painting)
        assert np.array_equal(crop, geometry.apply_to_ids(expected, SIZE))
        window = store.id_map(row["image_id"], (2, 11, 9, 6), painting)
        assert np.array_equal(window, expected[2:11, 11:17])
    assert 1 <= len(cache) <= 3
    no_columns = np.arange(0)
    assert store.id_crop("drive/00", np.arange(5), no_columns, painting).shape == (5, 0)
    with pytest.raises(ConfigError, match="columns 28 to 32"):
        store.id_crop("drive/03", np.arange(5), np.arange(28, 33), painting)


def test_shards_with_other_row_groups_are_read(rows, tmp_path: Path):
    """Earlier releases wrote groups of eight rows, other tools write any number."""
    path = write_rows(tmp_path, rows[:11])
    table = pq.read_table(path)
    for size in (1, 3, 8, 100):
        pq.write_table(table, path, row_group_size=size)
        store = MaskStore(tmp_path)
        assert [store.load(row["image_id"]) for row in rows[:11]] == rows[:11]


def test_painted_images_are_cached(rows, tmp_path: Path):
    path = write_rows(tmp_path, rows[:2])
    store = MaskStore(tmp_path)
    fine, coarse = (store.id_map("drive/00", None, p) for p in ("fine", "coarse"))
    path.unlink()
    assert np.array_equal(store.id_map("drive/00"), fine)
    assert np.array_equal(MaskStore.id_map(store, "drive/00", painting="coarse"), coarse)
    with pytest.raises((OSError, DataError)):  # not cached, and the file is gone
        store.id_map("drive/01")


def test_changes_of_a_returned_map_do_not_reach_the_cache(store, rows):
    store.id_map("drive/00")[:] = 99
    store.load("drive/00")["masks"].clear()
    assert np.array_equal(store.id_map("drive/00"), painted_row(rows[0], "fine"))
    assert store.load("drive/00") == rows[0]


def test_shards_of_earlier_releases_are_read(rows, tmp_path: Path):
    """They lack the columns with the content of the image."""
    path = write_rows(tmp_path, rows)
    missing = ["image_bytes", "image_mtime_ns", "image_sha256", "imported_from"]
    pq.write_table(pq.read_table(path).drop_columns(missing), path)
    store = MaskStore(tmp_path)
    assert [store.load(row["image_id"]) for row in rows] == rows
    assert store.contents == {}


def test_a_message_on_embeddings_has_no_password(store):
    store.location = to_place("s3://user:secret@fleet/masks")
    store.folder = address_of(store.location)
    with pytest.raises(DataError, match="masks in 's3://fleet/masks' have no embeddings"):
        store.embeddings(store.ids()[0])
