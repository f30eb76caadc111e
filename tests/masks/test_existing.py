"""Existing folders of masks: whether they belong to the images, and their summaries."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from amg_samples import MASKS, SIZE, import_quietly, put_images, put_masks, write_json
from PIL import Image

from sfss_ray.data.folders import ImageFile, list_images
from sfss_ray.errors import DataError
from sfss_ray.masks.bank.schema import shard_paths, write_shard
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.existing import has_masks_of, open_masks, summarise_existing
from sfss_ray.masks.regions import NOTES


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Imported masks of five images in masks/; the first image has an error."""
    put_images(tmp_path / "images", *MASKS)
    source = put_masks(tmp_path / "sam", write_json, *[name for name in MASKS if name != "frame0"])
    import_quietly(source, tmp_path / "images", tmp_path / "masks")
    return tmp_path / "masks"


def test_a_folder_may_contain_more_than_the_images_of_a_run(masks: Path, tmp_path: Path):
    files = list_images(tmp_path / "images")
    whole = summarise_existing(open_masks(masks, files), files)
    assert (whole.images, whole.masks, list(whole.errors)) == (5, 10, ["frame0"])
    assert (whole.source, whole.note, whole.made) == ("imported", NOTES["imported"], 0)
    assert whole.folder == str(masks)
    part = summarise_existing(open_masks(masks, files[2:4]), files[2:4])
    assert (part.images, part.masks, part.errors) == (2, 5, {})


def test_images_without_masks_are_named(masks: Path, tmp_path: Path):
    put_images(tmp_path / "images", "new/a", "new/b", "new/c")
    files = list_images(tmp_path / "images")
    with pytest.raises(
        DataError, match=r"3 of 8 images have no masks in .*: 'new/a', 'new/b', 'new"
    ):
        open_masks(masks, files)
    put_images(tmp_path / "images", "new/d", "new/e")
    with pytest.raises(DataError, match=r"'new/c' and 2 more; make them"):
        open_masks(masks, list_images(tmp_path / "images"))


def test_masks_of_changed_images_are_refused(masks: Path, tmp_path: Path):
    """Names, times and sizes in pixels are the same: the content of the files decides."""
    path = tmp_path / "images" / "frame3.png"
    before = path.stat()
    Image.new("RGB", (SIZE[1], SIZE[0]), "red").save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    files = list_images(tmp_path / "images")
    with pytest.raises(
        DataError, match=r"1 of 5 images were changed since .* \(first: 'frame3'\): make or import"
    ):
        open_masks(masks, files)


def test_copies_of_the_images_are_accepted(masks: Path, tmp_path: Path):
    shutil.copytree(tmp_path / "images", tmp_path / "copy", copy_function=shutil.copyfile)
    assert len(open_masks(masks, list_images(tmp_path / "copy"))) == 5


def test_masks_of_images_of_another_size_are_refused(masks: Path, tmp_path: Path):
    """Masks of an earlier release do not store the content of their images."""
    for shard in shard_paths(masks):
        table = pq.read_table(shard)
        columns = [name for name in table.column_names if not name.startswith("image_sha")]
        pq.write_table(table.select(columns), shard)
    Image.new("RGB", (SIZE[1], SIZE[0] + 1)).save(tmp_path / "images" / "frame3.png")
    with pytest.raises(DataError, match=r"'frame3' is 40x25, its masks in .* are 40x24: give"):
        open_masks(masks, list_images(tmp_path / "images"))


def test_a_folder_of_errors_is_refused(masks: Path, tmp_path: Path):
    files = list_images(tmp_path / "images")[:1]
    with pytest.raises(DataError, match="none of the 1 images has masks; 'frame0': no masks"):
        summarise_existing(open_masks(masks, files), files)


def test_an_id_of_another_folder_is_another_image(masks: Path, tmp_path: Path):
    store = MaskStore(masks)
    files = {file.image_id: file for file in list_images(tmp_path / "images")}
    assert has_masks_of(store, files["frame1"])
    assert not has_masks_of(store, files["frame0"])
    assert not has_masks_of(store, ImageFile("frame1", tmp_path / "other" / "frame1.png"))
    assert not has_masks_of(store, ImageFile("frame9", files["frame1"].path))
    (tmp_path / "linked").symlink_to(tmp_path / "images")
    assert has_masks_of(store, ImageFile("frame1", tmp_path / "linked" / "frame1.png"))


def test_sources_of_other_versions_are_reported_unchanged(masks: Path, tmp_path: Path):
    rows = [MaskStore(masks).load("frame1")]
    (tmp_path / "other").mkdir()
    write_shard(tmp_path / "other" / "masks-0.parquet", rows, {"source": "random"})
    files = [file for file in list_images(tmp_path / "images") if file.image_id == "frame1"]
    summary = summarise_existing(open_masks(tmp_path / "other", files), files)
    assert (summary.source, summary.masks) == ("random", 1)
    assert "does not know" in summary.note
    assert np.array_equal(MaskStore(tmp_path / "other").id_map("frame1"), MASKS["frame1"][0])
