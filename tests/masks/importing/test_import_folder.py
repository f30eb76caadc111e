"""Masks made elsewhere: both of amg.py's formats, against pycocotools and segment-anything itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from amg_samples import (
    MASKS,
    SIZE,
    WRITERS,
    Writer,
    as_rle,
    put_images,
    put_masks,
    record,
    take,
    write_folder,
    write_json,
)
from pycocotools import mask as coco
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils.amg import mask_to_rle_pytorch, rle_to_mask

from sfss_ray import cli, import_masks
from sfss_ray.config import MaskConfig
from sfss_ray.data.decoding import read_image
from sfss_ray.data.folders import list_images
from sfss_ray.errors import DataError, ResumeError
from sfss_ray.masks.bank.schema import shard_paths, write_shard
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.regions import IMPORTED, NOTES, build_region_source, make_recipe
from sfss_ray.masks.sam.networks import load_sam, shipped_small_sam

OPEN: dict[str, Any] = {
    "points_per_side": 6,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.2,
    "box_nms_thresh": 0.9,
}
"""Knobs that let many overlapping masks of the small SAM through."""


@pytest.fixture(params=WRITERS)
def write(request) -> Writer:
    return WRITERS[request.param]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return put_images(tmp_path / "images", *MASKS)


def painted(masks: list[np.ndarray], size: tuple[int, int] = SIZE) -> np.ndarray:
    """Ids of plain masks, the smallest on top, of two of a size the later one."""
    ids = np.zeros(size, np.int32)
    for k in sorted(range(len(masks)), key=lambda k: -int(masks[k].sum())):
        ids[masks[k]] = k + 1
    return ids


def test_id_maps_are_those_of_the_masks(write, images: Path, tmp_path: Path):
    summary = take(put_masks(tmp_path / "sam", write), images, tmp_path / "out")
    assert (summary.source, summary.images, summary.masks) == (IMPORTED, 5, 10)
    assert (summary.made, summary.errors, summary.note) == (5, {}, NOTES[IMPORTED])
    store = MaskStore(tmp_path / "out")
    assert store.recipe["source"] == IMPORTED
    for name, masks in MASKS.items():
        assert (store.id_map(name) == painted(masks)).all(), name
        window = store.id_map(name, (3, 5, 11, 20))
        assert (window == painted(masks)[3:14, 5:25]).all(), name
        row = store.load(name)
        assert row["path"] == str(images / f"{name}.png")
        assert (row["height"], row["width"]) == SIZE


def test_records_are_those_that_were_written(write, images: Path, tmp_path: Path):
    take(put_masks(tmp_path / "sam", write), images, tmp_path / "out")
    for found, mask in zip(
        MaskStore(tmp_path / "out").load("frame4")["masks"], MASKS["frame4"], strict=True
    ):
        rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        written = record(mask)
        assert found["counts"] == rle["counts"].decode()
        assert (found["area"], found["bbox"]) == (written["area"], written["bbox"])
        assert found["predicted_iou"] == pytest.approx(0.9)
        assert found["stability_score"] == pytest.approx(0.45)
        assert (found["point"], found["crop_box"]) == ([1.5, 2.25], [0, 0, 40, 24])


def test_a_mask_without_a_pixel_is_no_error(write, images: Path, tmp_path: Path):
    empty = record(np.zeros(SIZE, bool))
    write(tmp_path / "sam" / "frame1", [empty, record(MASKS["frame1"][0])])
    take(tmp_path / "sam", images, tmp_path / "out")
    store = MaskStore(tmp_path / "out")
    assert [mask["area"] for mask in store.load("frame1")["masks"]] == [0, MASKS["frame1"][0].sum()]
    assert (store.id_map("frame1") == 2 * MASKS["frame1"][0]).all()


def test_runs_may_be_numbers(images: Path, tmp_path: Path):
    """SamAutomaticMaskGenerator's uncompressed_rle."""
    mask = MASKS["frame1"][0]
    runs = mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0]
    (tmp_path / "sam").mkdir()
    path = tmp_path / "sam" / "frame1.json"
    path.write_text(json.dumps([record(mask) | {"segmentation": runs}]))
    take(tmp_path / "sam", images, tmp_path / "out")
    assert (MaskStore(tmp_path / "out").id_map("frame1") == mask).all()


def test_names_are_found_below_folders_and_by_themselves(write, tmp_path: Path):
    """amg.py writes flat names; run for each folder of images it leaves their folders."""
    images = put_images(tmp_path / "images", "aachen/frame1", "bonn/frame1", "bonn/frame2")
    put_masks(tmp_path / "sam", write, "aachen/frame1", "bonn/frame1", "frame2")
    assert take(tmp_path / "sam", images, tmp_path / "out").errors == {}
    ambiguous = put_masks(tmp_path / "flat", write, "frame1", "frame2")
    summary = take(ambiguous, images, tmp_path / "again")
    assert set(summary.errors) == {"aachen/frame1", "bonn/frame1"}
    assert "may belong to each of 2 images named 'frame1'" in summary.errors["bonn/frame1"]


def test_images_without_masks_are_named_and_tried_again(write, images: Path, tmp_path: Path):
    source, out = put_masks(tmp_path / "sam", write, "frame1", "frame3"), tmp_path / "out"
    summary = take(source, images, out, images_per_shard=3)
    assert set(summary.errors) == {"frame0", "frame2", "frame4"}
    assert "neither frame2/metadata.csv nor frame2.json in" in summary.errors["frame2"]
    before = {path: path.stat().st_mtime_ns for path in shard_paths(out)}
    assert len(before) == 2
    again = take(source, images, out)
    assert (again.made, again.errors) == (0, summary.errors)
    assert {path: path.stat().st_mtime_ns for path in shard_paths(out)} == before
    put_masks(source, write, "frame2")
    last = take(source, images, out)
    assert (last.made, last.masks) == (1, 6)
    assert set(last.errors) == {"frame0", "frame4"}
    changed = [path for path in shard_paths(out) if path.stat().st_mtime_ns != before[path]]
    assert len(changed) == 1
    store = MaskStore(out)
    assert len(store) == 5
    for name in ("frame1", "frame2", "frame3"):
        assert (store.id_map(name) == painted(MASKS[name])).all()


def test_what_is_there_is_not_read_again(write, images: Path, tmp_path: Path):
    source, out = put_masks(tmp_path / "sam", write), tmp_path / "out"
    take(source, images, out, images_per_shard=2)
    removed = shard_paths(out)[0]
    ids = MaskStore(out).ids()
    removed.unlink()
    kept = set(MaskStore(out).ids())
    lines: list[str] = []
    summary = import_masks(source, images, out, progress=lines.append)
    assert summary.made == 5 - len(kept)
    there = f"masks: {5 - len(kept)} of 5 images to import, {len(kept)} are imported already"
    assert lines[0] == there
    assert lines[-1].startswith(f"imported {5 - len(kept)}/{5 - len(kept)} (")
    assert MaskStore(out).ids() == ids
    assert take(source, images, out).made == 0


def test_an_unreadable_image_is_an_error_too(write, images: Path, tmp_path: Path):
    source = put_masks(tmp_path / "sam", write)
    (images / "frame2.png").write_bytes(b"")
    assert "(0 bytes)" in take(source, images, tmp_path / "out").errors["frame2"]


def test_nothing_to_import_is_one_line(images: Path, tmp_path: Path, capsys):
    def refused(source: Path) -> str:
        code = cli.main(["masks", "import", str(source), str(images), str(tmp_path / "out")])
        assert code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "out").exists()
        return line

    assert "nowhere' does not exist" in refused(tmp_path / "nowhere")
    assert "frame1.png' is a file" in refused(images / "frame1.png")
    (tmp_path / "sam" / "other").mkdir(parents=True)
    line = refused(tmp_path / "sam")
    assert "none of the 5 images has masks" in line
    assert "frame0/metadata.csv" in line
    assert "found is 'other'" in line
    inside = put_masks(images / "sam", write_folder, "frame1")
    assert "lies in the image folder" in refused(inside)


def test_masks_that_are_all_damaged_are_refused(images: Path, tmp_path: Path):
    source = put_masks(tmp_path / "sam", write_json, "frame1")
    (source / "frame1.json").write_text("{}")
    with pytest.raises(DataError, match="none of the 5 images has masks; 'frame0': no masks"):
        take(source, images, tmp_path / "out")


def test_folders_of_masks_that_were_made_are_refused(images: Path, tmp_path: Path):
    source, recipe = put_masks(tmp_path / "sam", write_json), make_recipe(MaskConfig(), None)[0]
    (tmp_path / "out").mkdir()
    write_shard(tmp_path / "out" / "masks-0.parquet", [], recipe.as_dict())
    with pytest.raises(ResumeError, match="holds masks made otherwise"):
        take(source, images, tmp_path / "out")


def test_the_command_says_what_it_took(write, images: Path, tmp_path: Path, capsys):
    source = put_masks(tmp_path / "sam", write, "frame2", "frame4")
    words = [source, images, tmp_path / "out", "--masks.images-per-shard", 2]
    assert cli.main(["masks", "import", *map(str, words)]) == 13, "10 and three without masks"
    page = capsys.readouterr().out
    assert "masks: 5 of 5 images to import" in page
    assert "imported 5/5 (" in page
    assert "source: imported" in page
    assert "masks: 6" in page
    assert "frame1: no masks: neither frame1/metadata.csv" in page
    assert len(shard_paths(tmp_path / "out")) == 3
    assert cli.main(["masks", "inspect", str(tmp_path / "out")]) == 0
    assert "regions: imported (made elsewhere" in capsys.readouterr().out


def test_what_segment_anything_finds_comes_back_whole(shared_data, tmp_path: Path):
    """The shipped small SAM in segment-anything's own generator, both formats, real images."""
    generators = [
        SamAutomaticMaskGenerator(load_sam(shipped_small_sam()), crop_n_layers=layers, **OPEN)
        for layers in (0, 1)
    ]
    found = {}
    (tmp_path / "images").mkdir()
    files = list_images(shared_data("camvid") / "images" / "val")[::60]
    for file, generator in zip(files, generators, strict=True):
        (tmp_path / "images" / file.path.name).symlink_to(file.path)
        found[file.image_id] = generator.generate(read_image(file.path))
        write_folder(tmp_path / "png" / file.image_id, found[file.image_id])
        write_json(tmp_path / "json" / file.image_id, found[file.image_id])
    assert min(len(records) for records in found.values()) >= 15
    for kind in WRITERS:
        summary = take(tmp_path / kind, tmp_path / "images", tmp_path / "out" / kind)
        assert summary.errors == {}
    stores = [MaskStore(tmp_path / "out" / kind) for kind in WRITERS]
    for image_id, records in found.items():
        masks = [mask["segmentation"] for mask in records]
        wanted = painted(masks, masks[0].shape)
        rows = [store.load(image_id)["masks"] for store in stores]
        assert rows[0] == rows[1]
        assert all((store.id_map(image_id) == wanted).all() for store in stores)
        for row, mask in zip(rows[0], records, strict=True):
            encoded = as_rle(mask)["segmentation"]
            assert row["counts"] == encoded["counts"]
            assert (coco.decode(encoded) == mask["segmentation"]).all()
            assert (row["area"], row["bbox"]) == (mask["area"], mask["bbox"])
            assert row["crop_box"] == mask["crop_box"]
            assert row["point"] == pytest.approx(mask["point_coords"][0])
            scores = (mask["predicted_iou"], mask["stability_score"])
            assert (row["predicted_iou"], row["stability_score"]) == pytest.approx(scores)


def test_imported_masks_are_those_that_this_package_makes(shared_data, tmp_path: Path):
    """The same weights and settings: here, and by way of files."""
    file = list_images(shared_data("camvid") / "images" / "val")[0]
    recipe, weights = make_recipe(MaskConfig(regions="small_sam", **OPEN), None)
    made = build_region_source(recipe, weights, 64, "cpu")(read_image(file.path))
    generator = SamAutomaticMaskGenerator(load_sam(shipped_small_sam()), **recipe.knobs)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / file.path.name).symlink_to(file.path)
    write_json(tmp_path / "sam" / file.image_id, generator.generate(read_image(file.path)))
    take(tmp_path / "sam", tmp_path / "images", tmp_path / "out")
    imported = MaskStore(tmp_path / "out").load(file.image_id)["masks"]
    assert len(imported) == len(made) >= 10
    keys = ("counts", "area", "bbox", "crop_box")
    found = [{key: mask[key] for key in keys} for mask in imported]
    assert found == [{key: mask[key] for key in keys} for mask in made]


def test_uncompressed_runs_decode_alike():
    """The reference of these tests is what segment-anything decodes itself."""
    for mask in MASKS["frame4"]:
        runs = mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0]
        assert (rle_to_mask(runs) == mask).all()
