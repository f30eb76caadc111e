"""Resuming in a folder of masks: which images are done, and which are made again."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from amg_samples import import_quietly, put_images, put_masks, write_json
from mask_runs import (
    make_masks,
    put_noise,
    run_pools_in_process,
    stored_counts,
    stored_ids,
)

from sfss_ray.config import MaskConfig
from sfss_ray.data.folders import list_images
from sfss_ray.errors import ResumeError
from sfss_ray.masks.bank.schema import shard_paths, write_shard
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.generate import generate_masks
from sfss_ray.masks.regions import make_recipe
from sfss_ray.masks.resume import (
    RemainingWork,
    drop_rows_of,
    find_rows,
    images_to_do,
    remaining_work,
    remove_leftovers,
)
from sfss_ray.runtime.crash_guard import CRASH_REASON


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    run_pools_in_process(monkeypatch)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return put_noise(tmp_path / "images", "a.png", "b.png", "c.png")


def test_remaining_work_is_described_in_words(tmp_path: Path, images: Path):
    files = list_images(images)
    assert RemainingWork(files, set(), set()).describe(3) == "3 of 3 images to do"
    assert RemainingWork(files, {"a"}, {"b", "c"}).describe(9) == (
        "3 of 9 images to do (2 changed since their masks were made), 6 are done already"
    )


def test_images_without_a_row_are_to_do(images: Path, tmp_path: Path):
    folder, recipe = tmp_path / "masks", make_recipe(MaskConfig(), None)[0]
    make_masks(images, folder)
    put_noise(images, "d.png")
    to_do = images_to_do(folder, recipe, list_images(images), 10**6)
    assert [image.image_id for image in to_do] == ["d"]


def test_dropped_rows_are_to_do_again(images: Path, tmp_path: Path):
    folder, recipe = tmp_path / "masks", make_recipe(MaskConfig(), None)[0]
    make_masks(images, folder)
    drop_rows_of({"a", "c"}, find_rows(folder, recipe), recipe)
    assert stored_ids(folder) == ["b"]
    rows = find_rows(folder, recipe)
    work = remaining_work(folder, rows, list_images(images), 10**6)
    assert [image.image_id for image in work.images] == ["a", "c"]
    assert (work.retried, work.changed) == (set(), set())


def test_only_half_written_shards_are_removed(tmp_path: Path):
    leftover = tmp_path / f".masks-{'0' * 16}.parquet.node-77"
    foreign = [tmp_path / name for name in (".masks.lock", ".hidden.parquet", "masks-0.parquet")]
    for path in (leftover, *foreign):
        path.touch()
    remove_leftovers(tmp_path)
    assert not leftover.exists()
    assert all(path.exists() for path in foreign)


def test_masks_of_other_images_with_the_same_names_are_refused(images: Path, tmp_path: Path):
    folder = tmp_path / "masks"
    make_masks(images, folder)
    other = put_noise(tmp_path / "other", "a.png", "b.png", "c.png", "d.png", size=(30, 20))
    with pytest.raises(ResumeError, match=r"masks of other images: .*'a'.*40x24.*20x30.*another"):
        make_masks(other, folder)
    source = put_masks(tmp_path / "sam", write_json, "frame1")
    frames = put_images(tmp_path / "frames", "frame1")
    import_quietly(source, frames, tmp_path / "imported")
    new_frames = put_noise(tmp_path / "new", "frame1.png", size=(9, 9))
    with pytest.raises(ResumeError, match="masks of other images"):
        import_quietly(source, new_frames, tmp_path / "imported")


def test_a_moved_data_set_resumes(images: Path, tmp_path: Path):
    folder = tmp_path / "masks"
    make_masks(images, folder)
    moved = images.rename(tmp_path / "elsewhere")
    put_noise(moved, "d.png", size=(9, 9))
    assert make_masks(moved, folder).made == 1
    put_noise(moved, "a.png", seed=5)
    again = make_masks(moved, folder)
    assert (again.made, again.errors) == (1, {}), "one of four changed: the same data set"


def test_failed_images_are_retried_at_their_present_path(images: Path, tmp_path: Path):
    folder = tmp_path / "masks"
    (images / "x.jpg").write_bytes(b"")
    (images / "y.png").write_bytes(b"")
    assert set(make_masks(images, folder).errors) == {"x", "y"}
    (images / "x.jpg").unlink()
    moved = put_noise(images, "x.png").rename(tmp_path / "elsewhere")
    put_noise(moved, "y.png")
    again = make_masks(moved, folder)
    assert (again.made, again.errors) == (2, {})
    assert MaskStore(folder).load("y")["path"] == str(moved / "y.png")


def test_an_image_that_killed_its_process_waits_for_a_new_file(
    images: Path, tmp_path: Path, monkeypatch
):
    """The command does not even decode it, because it could die too."""
    folder = tmp_path / "masks"
    (images / "c.png").write_bytes(b"")
    make_masks(images, folder)
    recipe = make_recipe(MaskConfig(), None)[0].as_dict()
    shard = next(
        path for path in shard_paths(folder) if "c" in pq.read_table(path)["image_id"].to_pylist()
    )
    rows = [row | {"error": CRASH_REASON} for row in pq.read_table(shard).to_pylist()]
    put_noise(images, "c.png")
    write_shard(shard, rows, recipe)
    with monkeypatch.context() as patched:
        patched.setattr("sfss_ray.data.folders.ImageFile.read", None)
        again = make_masks(images, folder)
    assert (again.made, again.errors) == (0, {"c": CRASH_REASON})
    shard_time = shard.stat().st_mtime_ns
    os.utime(images / "c.png", ns=(shard_time + 1, shard_time + 1))
    assert (again := make_masks(images, folder)).made == 1
    assert again.errors == {}


def test_of_two_rows_of_an_image_the_one_with_masks_counts(images: Path, tmp_path: Path):
    folder = tmp_path / "masks"
    make_masks(images, folder)
    good = shard_paths(folder)
    recipe = make_recipe(MaskConfig(), None)[0]
    complete = MaskStore(folder)
    failed = [complete.load("a") | {"masks": [], "error": "unreadable", "height": 0, "width": 0}]
    for name in ("masks-0.parquet", "masks-z.parquet"):  # before and after the good one
        write_shard(folder / name, failed, recipe.as_dict())
        copy = folder / f"copy-{name}"
        copy.write_bytes(good[0].read_bytes())
        store = MaskStore(folder)
        assert store.errors == {}
        assert store.num_masks == complete.num_masks
        assert store.load("a")["masks"]
        assert not find_rows(folder, recipe)["a"].failed


def test_masks_of_other_weights_are_refused_with_both_hashes(tmp_path: Path):
    recipe, _ = make_recipe(MaskConfig(regions="small_sam"), None)
    folder = tmp_path / "masks"
    folder.mkdir()
    row = {"image_id": "a", "path": "a", "height": 24, "width": 40, "masks": [], "error": None}
    other = recipe.as_dict() | {"sam_sha256": "0" * 64}
    write_shard(folder / f"masks-{'0' * 16}.parquet", [row], other)
    with pytest.raises(ResumeError, match=f"sam_sha256: {'0' * 64} -> {recipe.sam_sha256}"):
        find_rows(folder, recipe)


def test_images_replaced_under_their_names_get_new_masks(images: Path, tmp_path: Path):
    folder, lines = tmp_path / "masks", []
    make_masks(images, folder)
    before = {i: stored_counts(folder, i) for i in "abc"}
    put_noise(images, "b.png", seed=9)
    summary = generate_masks(images, folder, progress=lines.append)
    assert summary.made == 1
    assert "1 of 3 images to do (1 changed since their masks were made), 2 are done" in lines[-2]
    after = {i: stored_counts(folder, i) for i in "abc"}
    assert [i for i in "abc" if before[i] != after[i]] == ["b"]
    assert stored_ids(folder) == ["a", "b", "c"]
    assert make_masks(images, folder).made == 0


def test_a_changed_image_of_equal_size_is_detected_by_its_hash(tmp_path: Path):
    """Bitmaps are not compressed: all files have the same number of bytes."""
    folder, images = tmp_path / "masks", put_noise(tmp_path / "images", "a.bmp", "b.bmp")
    make_masks(images, folder)
    os.utime(images / "a.bmp", ns=(5, 5))
    assert make_masks(images, folder).made == 0, "touched, not changed"
    put_noise(images, "b.bmp", seed=4)
    assert make_masks(images, folder).made == 1


def test_masks_of_an_earlier_release_are_made_again_if_the_image_is_newer(
    images: Path, tmp_path: Path
):
    folder = tmp_path / "masks"
    make_masks(images, folder)
    for shard in shard_paths(folder):
        table = pq.read_table(shard)
        columns = [n for n in table.column_names if not n.startswith("image_") or n == "image_id"]
        pq.write_table(table.select([n for n in columns if n != "imported_from"]), shard)
    assert make_masks(images, folder).made == 0
    put_noise(images, "c.png", seed=3)
    newest = max(shard.stat().st_mtime_ns for shard in shard_paths(folder)) + 10**9
    os.utime(images / "c.png", ns=(newest, newest))
    assert make_masks(images, folder).made == 1
