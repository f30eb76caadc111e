"""Mask runs from a folder of images to shards, without a cluster."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from amg_samples import put_images, put_masks, write_json
from mask_runs import (
    make_masks,
    put_foreign_files,
    put_noise,
    run_pools_in_process,
    stored_ids,
)
from PIL import Image

from sfss_ray import cli
from sfss_ray.config import Config, override
from sfss_ray.data.folders import list_images
from sfss_ray.errors import DataError, ResumeError
from sfss_ray.masks import generate
from sfss_ray.masks.actor import MaskActor
from sfss_ray.masks.bank.claims import claim_folder
from sfss_ray.masks.bank.schema import shard_paths
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.generate import generate_masks
from sfss_ray.runtime.pool_plan import make_plan
from sfss_ray.runtime.resources import Resources

PER_SHARD = generate._images_per_shard


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    run_pools_in_process(monkeypatch)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return put_noise(tmp_path / "images", "a.png", "b.png", "c.png")


def test_every_image_gets_masks_and_progress_is_reported(images: Path, tmp_path: Path):
    lines: list[str] = []
    summary = generate_masks(images, tmp_path / "masks", progress=lines.append)
    assert (summary.images, summary.made, summary.errors) == (3, 3, {})
    assert (summary.source, summary.folder) == ("felzenszwalb", tmp_path / "masks")
    assert summary.masks == MaskStore(tmp_path / "masks").num_masks > 0
    assert lines[0].startswith("device: cpu (")
    assert lines[1] == "masks by felzenszwalb: 3 of 3 images to do"
    assert lines[-1].startswith("masks 3/3 (")
    assert len(shard_paths(tmp_path / "masks")) == 2, "two images in a shard"


def test_strict_runs_raise_after_all_other_images_are_done(images: Path, tmp_path: Path):
    (images / "d.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 4 images have no masks \(first: 'd': .*0 bytes"):
        generate_masks(images, tmp_path / "masks", strict=True, progress=str)
    assert stored_ids(tmp_path / "masks") == ["a", "b", "c", "d"]
    assert make_masks(images, tmp_path / "masks").errors.keys() == {"d"}


def test_a_run_without_a_mask_says_what_to_change(images: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(MaskActor, "_find_masks", lambda self, image: [])
    lines: list[str] = []
    summary = generate_masks(images, tmp_path / "masks", progress=lines.append)
    assert (summary.masks, summary.errors) == (0, {})
    assert lines[-1] == (
        "masks: no image has a mask by felzenszwalb: lower masks.felzenszwalb_min_size, in another"
        " folder"
    )


@pytest.mark.parametrize("before", [True, False], ids=["before the masks", "beside them"])
def test_foreign_files_are_ignored_and_not_changed(before, images: Path, tmp_path: Path):
    folder = tmp_path / "masks"
    if not before:
        make_masks(images, folder)
    foreign = put_foreign_files(folder)
    assert make_masks(images, folder).made == (3 if before else 0)
    assert make_masks(images, folder).made == 0
    (images / "d.png").write_bytes(b"")
    assert make_masks(images, folder).errors.keys() == {"d"}
    assert make_masks(images, folder).made == 0
    assert all(path.exists() for path in foreign)
    assert stored_ids(folder) == ["a", "b", "c", "d"]


def test_damaged_shards_are_made_again(images: Path, tmp_path: Path):
    folder = tmp_path / "masks"
    make_masks(images, folder)
    first = shard_paths(folder)[0]
    num_lost = len(pq.read_table(first))
    for data in (first.read_bytes()[:300], b"", b"PAR1" + b"\xff" * 40 + b"\x10\0\0\0PAR1"):
        first.write_bytes(data)
        assert make_masks(images, folder).made == num_lost
        assert stored_ids(folder) == ["a", "b", "c"]


def test_a_shard_that_cannot_be_read_is_kept_and_named(images: Path, tmp_path: Path, monkeypatch):
    folder = tmp_path / "masks"
    make_masks(images, folder)
    first = shard_paths(folder)[0]

    def refuse(path, **options):
        if path == str(first):
            raise PermissionError(13, "Permission denied")
        return parquet_file(path, **options)

    parquet_file = pq.ParquetFile
    monkeypatch.setattr("sfss_ray.masks.bank.shards.pq.ParquetFile", refuse)
    for read in (lambda: make_masks(images, folder), lambda: MaskStore(folder)):
        with pytest.raises(
            DataError, match=r"cannot be read \(.*Permission denied\): make it read"
        ):
            read()
    assert first.exists()


def test_names_that_are_not_utf8_have_masks_too(images: Path, tmp_path: Path):
    folder = tmp_path / "masks"
    try:
        (images / "a.png").rename(images / "caf\udce9.png")
    except OSError:
        pytest.skip("this file system only takes names in UTF-8")
    for num_made in (3, 0):
        summary = make_masks(images, folder)
        assert (summary.made, summary.errors) == (num_made, {})
    assert stored_ids(folder) == ["b", "c", r"caf\xe9"]
    assert MaskStore(folder).load(r"caf\xe9")["path"] == str(images / r"caf\xe9.png")
    assert MaskStore(folder).id_map(r"caf\xe9").shape == (24, 40)


def test_a_second_run_on_the_folder_is_refused_in_one_line(images: Path, tmp_path: Path, capsys):
    source = put_masks(tmp_path / "sam", write_json, "frame1")
    frames = put_images(tmp_path / "frames", "frame1")
    (folder := (tmp_path / "masks").absolute()).mkdir()
    leftover = folder / f".masks-{'0' * 16}.parquet.77"
    leftover.touch()
    with claim_folder(folder):
        for arguments in (["masks", "--target-images", images, "--output-dir", folder],
                          ["masks", "import", source, frames, folder]):  # fmt: skip
            assert cli.main([str(argument) for argument in arguments]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert "another run is making masks in" in line
        assert leftover.exists(), "it may belong to the other run"
    assert make_masks(images, folder).made == 3
    assert not leftover.exists()


def test_a_run_stops_once_another_has_claimed_its_folder(images: Path, tmp_path: Path, monkeypatch):
    """A disk without locks does not keep the second run out."""
    monkeypatch.setattr("sfss_ray.masks.bank.claims.try_lock", lambda handle: True)
    folder, work = tmp_path / "masks", MaskActor.__call__

    def claim_and_work(actor, batch):
        with claim_folder(folder):
            return work(actor, batch)

    with monkeypatch.context() as patched:
        patched.setattr(MaskActor, "__call__", claim_and_work)
        with pytest.raises(ResumeError, match=r"another run has begun.*run again"):
            make_masks(images, folder)
    assert shard_paths(folder) == []
    assert make_masks(images, folder).made == 3


def test_an_output_folder_that_is_a_file_is_refused_in_one_line(
    images: Path, tmp_path: Path, capsys
):
    (tmp_path / "out").touch()
    source = put_masks(tmp_path / "sam", write_json, "frame1")
    put_images(images, "frame1")
    for folder in (tmp_path / "out", tmp_path / "out" / "below"):
        for arguments in (["masks", "--target-images", images, "--output-dir", folder],
                          ["masks", "import", source, images, folder]):  # fmt: skip
            assert cli.main([str(argument) for argument in arguments]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f"output folder {str(folder)!r}" in line
            assert "give a folder that you may write" in line


def test_another_white_level_is_another_recipe(tmp_path: Path):
    """Masks of 12-bit images are not resumed silently with the white level of 16 bits."""
    images, folder = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 4096, (24, 40), dtype=np.uint16)
    pixels[0, 0] = 4095
    Image.fromarray(pixels).save(images / "a.png")
    lines: list[str] = []
    first = generate_masks(images, folder, progress=lines.append)
    assert first.made == 1
    assert lines[0].startswith("images of more than 8 bits: white is 4095")
    assert MaskStore(folder).recipe["white_level"] == 4095
    config = override(Config(), {"white_level": 65535.0})
    with pytest.raises(ResumeError, match=r"white_level: 4095.0 -> 65535.0"):
        generate_masks(images, folder, config=config, progress=str)


def test_a_shard_of_decoded_images_fits_into_an_item(images: Path, monkeypatch):
    """Of images that travel decoded between processes, a shard holds as many as memory allows."""
    monkeypatch.setattr(generate, "ITEM_BYTES", 5 * 24 * 40 * 3)
    files = 100 * list_images(images)
    config = Config()
    count = PER_SHARD(files, make_plan(1, Resources(4.0, 1), 0.0), config)
    assert count == config.masks.images_per_shard == 32
    assert PER_SHARD(files, make_plan(1, Resources(4.0, 1), 1.0), config) == 5
    assert PER_SHARD(files, make_plan("1-60", Resources(4.0, 1), 1.0), config) == 1
