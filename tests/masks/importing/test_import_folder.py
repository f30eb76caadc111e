"""Imports of both formats of amg.py, against pycocotools and segment-anything itself."""

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
    import_quietly,
    put_images,
    put_masks,
    record,
    write_folder,
    write_json,
)
from mask_runs import put_foreign_files, put_noise
from PIL import Image
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

LOOSE: dict[str, Any] = {
    "points_per_side": 6,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.2,
    "box_nms_thresh": 0.9,
}
"""Settings that keep many overlapping masks of the small SAM."""


@pytest.fixture(params=WRITERS)
def write(request) -> Writer:
    return WRITERS[request.param]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return put_images(tmp_path / "images", *MASKS)


def painted(masks: list[np.ndarray], size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return the id map with the smallest mask on top; of two equal areas the later one."""
    ids = np.zeros(size, np.int32)
    for k in sorted(range(len(masks)), key=lambda k: -int(masks[k].sum())):
        ids[masks[k]] = k + 1
    return ids


def test_id_maps_are_those_of_the_masks(write, images: Path, tmp_path: Path):
    summary = import_quietly(put_masks(tmp_path / "sam", write), images, tmp_path / "out")
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


def test_records_are_stored_as_they_were_written(write, images: Path, tmp_path: Path):
    import_quietly(put_masks(tmp_path / "sam", write), images, tmp_path / "out")
    for stored, mask in zip(
        MaskStore(tmp_path / "out").load("frame4")["masks"], MASKS["frame4"], strict=True
    ):
        rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        written = record(mask)
        assert stored["counts"] == rle["counts"].decode()
        assert (stored["area"], stored["bbox"]) == (written["area"], written["bbox"])
        assert stored["predicted_iou"] == pytest.approx(0.9)
        assert stored["stability_score"] == pytest.approx(0.45)
        assert (stored["point"], stored["crop_box"]) == ([1.5, 2.25], [0, 0, 40, 24])


def test_an_empty_mask_is_not_an_error(write, images: Path, tmp_path: Path):
    empty = record(np.zeros(SIZE, bool))
    write(tmp_path / "sam" / "frame1", [empty, record(MASKS["frame1"][0])])
    import_quietly(tmp_path / "sam", images, tmp_path / "out")
    store = MaskStore(tmp_path / "out")
    assert [mask["area"] for mask in store.load("frame1")["masks"]] == [0, MASKS["frame1"][0].sum()]
    assert (store.id_map("frame1") == 2 * MASKS["frame1"][0]).all()


def test_run_lengths_may_be_numbers(images: Path, tmp_path: Path):
    """As in SamAutomaticMaskGenerator's uncompressed_rle."""
    mask = MASKS["frame1"][0]
    runs = mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0]
    (tmp_path / "sam").mkdir()
    path = tmp_path / "sam" / "frame1.json"
    path.write_text(json.dumps([record(mask) | {"segmentation": runs}]))
    import_quietly(tmp_path / "sam", images, tmp_path / "out")
    assert (MaskStore(tmp_path / "out").id_map("frame1") == mask).all()


def test_masks_are_found_by_path_and_by_file_name(write, tmp_path: Path):
    """amg.py writes file names without folders, unless it runs once for each folder."""
    images = put_images(tmp_path / "images", "aachen/frame1", "bonn/frame1", "bonn/frame2")
    put_masks(tmp_path / "sam", write, "aachen/frame1", "bonn/frame1", "frame2")
    assert import_quietly(tmp_path / "sam", images, tmp_path / "out").errors == {}
    ambiguous = put_masks(tmp_path / "flat", write, "frame1", "frame2")
    summary = import_quietly(ambiguous, images, tmp_path / "again")
    assert set(summary.errors) == {"aachen/frame1", "bonn/frame1"}
    assert "may belong to each of 2 images named 'frame1'" in summary.errors["bonn/frame1"]


def test_images_without_masks_are_named_and_imported_later(write, images: Path, tmp_path: Path):
    source, out = put_masks(tmp_path / "sam", write, "frame1", "frame3"), tmp_path / "out"
    summary = import_quietly(source, images, out, images_per_shard=3)
    assert set(summary.errors) == {"frame0", "frame2", "frame4"}
    assert "neither frame2/metadata.csv nor frame2.json in" in summary.errors["frame2"]
    before = {path: path.stat().st_mtime_ns for path in shard_paths(out)}
    assert len(before) == 2
    again = import_quietly(source, images, out)
    assert (again.made, again.errors) == (0, summary.errors)
    assert {path: path.stat().st_mtime_ns for path in shard_paths(out)} == before
    put_masks(source, write, "frame2")
    last = import_quietly(source, images, out)
    assert (last.made, last.masks) == (1, 6)
    assert set(last.errors) == {"frame0", "frame4"}
    changed = [path for path in shard_paths(out) if path.stat().st_mtime_ns != before[path]]
    assert len(changed) == 1
    store = MaskStore(out)
    assert len(store) == 5
    for name in ("frame1", "frame2", "frame3"):
        assert (store.id_map(name) == painted(MASKS[name])).all()


def test_finished_shards_are_not_read_again(write, images: Path, tmp_path: Path):
    source, out = put_masks(tmp_path / "sam", write), tmp_path / "out"
    import_quietly(source, images, out, images_per_shard=2)
    removed = shard_paths(out)[0]
    ids = MaskStore(out).ids()
    removed.unlink()
    num_done = len(MaskStore(out).ids())
    lines: list[str] = []
    summary = import_masks(source, images, out, progress=lines.append)
    assert summary.made == 5 - num_done
    expected = f"masks: {5 - num_done} of 5 images to import, {num_done} are imported already"
    assert expected in lines
    # The rate is left out of a line if the import took less than a millisecond.
    assert lines[-1].split(" (")[0] == f"imported {5 - num_done}/{5 - num_done}"
    assert MaskStore(out).ids() == ids
    assert import_quietly(source, images, out).made == 0


def test_an_unreadable_image_fails(write, images: Path, tmp_path: Path):
    source = put_masks(tmp_path / "sam", write)
    (images / "frame2.png").write_bytes(b"")
    assert "(0 bytes)" in import_quietly(source, images, tmp_path / "out").errors["frame2"]


def test_an_import_without_masks_is_refused_in_one_line(images: Path, tmp_path: Path, capsys):
    def refusal(source: Path) -> str:
        code = cli.main(["masks", "import", str(source), str(images), str(tmp_path / "out")])
        assert code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "out").exists()
        return line

    assert "nowhere' does not exist" in refusal(tmp_path / "nowhere")
    assert "frame1.png' lies in the image folder" in refusal(images / "frame1.png")
    (tmp_path / "sam" / "other").mkdir(parents=True)
    line = refusal(tmp_path / "sam")
    assert "none of the 5 images has masks" in line
    assert "frame0/metadata.csv" in line
    assert "found is 'other'" in line
    inside = put_masks(images / "sam", write_folder, "frame1")
    assert "lies in the image folder" in refusal(inside)


def test_an_import_in_which_all_images_fail_is_refused(images: Path, tmp_path: Path):
    source = put_masks(tmp_path / "sam", write_json, "frame1")
    (source / "frame1.json").write_text('[{"segmentation": 7}]')
    with pytest.raises(DataError, match="none of the 5 images has masks; 'frame0': no masks"):
        import_quietly(source, images, tmp_path / "out")


def test_folders_of_masks_that_were_not_imported_are_refused(images: Path, tmp_path: Path):
    source, recipe = put_masks(tmp_path / "sam", write_json), make_recipe(MaskConfig(), None)[0]
    (tmp_path / "out").mkdir()
    write_shard(tmp_path / "out" / "masks-0.parquet", [], recipe.as_dict())
    with pytest.raises(ResumeError, match="contains masks made with other settings"):
        import_quietly(source, images, tmp_path / "out")


def test_the_command_prints_a_summary(write, images: Path, tmp_path: Path, capsys):
    source = put_masks(tmp_path / "sam", write, "frame2", "frame4")
    arguments = [source, images, tmp_path / "out", "--masks.images-per-shard", 2]
    assert cli.main(["masks", "import", *map(str, arguments)]) == 13, "10 and three without masks"
    page = capsys.readouterr().out
    assert "masks: 5 of 5 images to import" in page
    assert "imported 5/5 (" in page
    assert "source: imported" in page
    assert "masks: 6" in page
    assert "frame1: no masks: neither frame1/metadata.csv" in page
    assert len(shard_paths(tmp_path / "out")) == 3
    assert cli.main(["masks", "inspect", str(tmp_path / "out")]) == 0
    assert "regions: imported (made elsewhere" in capsys.readouterr().out


def test_masks_of_segment_anything_are_imported_unchanged(shared_data, tmp_path: Path):
    """The generator is segment-anything's, the weights are the small SAM's, the images real."""
    generators = [
        SamAutomaticMaskGenerator(load_sam(shipped_small_sam()), crop_n_layers=layers, **LOOSE)
        for layers in (0, 1)
    ]
    records_by_image = {}
    (tmp_path / "images").mkdir()
    files = list_images(shared_data("camvid") / "images" / "val")[::60]
    for file, generator in zip(files, generators, strict=True):
        (tmp_path / "images" / file.path.name).symlink_to(file.path)
        records_by_image[file.image_id] = generator.generate(read_image(file.path))
        write_folder(tmp_path / "png" / file.image_id, records_by_image[file.image_id])
        write_json(tmp_path / "json" / file.image_id, records_by_image[file.image_id])
    assert min(len(records) for records in records_by_image.values()) >= 15
    for kind in WRITERS:
        summary = import_quietly(tmp_path / kind, tmp_path / "images", tmp_path / "out" / kind)
        assert summary.errors == {}
    stores = [MaskStore(tmp_path / "out" / kind) for kind in WRITERS]
    for image_id, records in records_by_image.items():
        masks = [mask["segmentation"] for mask in records]
        expected = painted(masks, masks[0].shape)
        rows = [store.load(image_id)["masks"] for store in stores]
        assert rows[0] == rows[1]
        assert all((store.id_map(image_id) == expected).all() for store in stores)
        for row, mask in zip(rows[0], records, strict=True):
            encoded = as_rle(mask)["segmentation"]
            assert row["counts"] == encoded["counts"]
            assert (coco.decode(encoded) == mask["segmentation"]).all()
            assert (row["area"], row["bbox"]) == (mask["area"], mask["bbox"])
            assert row["crop_box"] == mask["crop_box"]
            assert row["point"] == pytest.approx(mask["point_coords"][0])
            scores = (mask["predicted_iou"], mask["stability_score"])
            assert (row["predicted_iou"], row["stability_score"]) == pytest.approx(scores)


def test_imported_masks_are_those_of_this_package(shared_data, tmp_path: Path):
    """The weights and settings are the same."""
    file = list_images(shared_data("camvid") / "images" / "val")[0]
    recipe, weights = make_recipe(MaskConfig(regions="small_sam", **LOOSE), None)
    generated = build_region_source(recipe, weights, 64, "cpu")(read_image(file.path))
    generator = SamAutomaticMaskGenerator(load_sam(shipped_small_sam()), **recipe.knobs)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / file.path.name).symlink_to(file.path)
    write_json(tmp_path / "sam" / file.image_id, generator.generate(read_image(file.path)))
    import_quietly(tmp_path / "sam", tmp_path / "images", tmp_path / "out")
    imported = MaskStore(tmp_path / "out").load(file.image_id)["masks"]
    assert len(imported) == len(generated) >= 10
    keys = ("counts", "area", "bbox", "crop_box")
    imported_values = [{key: mask[key] for key in keys} for mask in imported]
    assert imported_values == [{key: mask[key] for key in keys} for mask in generated]


def test_segment_anything_decodes_the_masks_of_these_tests():
    """Uncompressed runs give back the masks that the other tests use as reference."""
    for mask in MASKS["frame4"]:
        runs = mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0]
        assert (rle_to_mask(runs) == mask).all()


@pytest.mark.parametrize("before", [True, False], ids=["before the masks", "beside them"])
def test_foreign_files_do_not_disturb_an_import(before, images: Path, tmp_path: Path):
    source = put_masks(tmp_path / "sam", write_json, "frame1", "frame2")
    out = tmp_path / "masks"
    if not before:
        import_quietly(source, images, out)
    foreign = put_foreign_files(out)
    import_quietly(source, images, out)
    put_masks(source, write_json, "frame3")
    again = import_quietly(source, images, out)
    assert (again.made, set(again.errors)) == (1, {"frame0", "frame4"})
    assert all(path.exists() for path in foreign)


def test_a_repeated_import_follows_changed_files(tmp_path: Path):
    frames = put_images(tmp_path / "frames", *MASKS)
    source = put_masks(tmp_path / "sam", write_json)
    out = tmp_path / "masks"
    assert import_quietly(source, frames, out).made == 5
    assert import_quietly(source, frames, out).made == 0
    former = MaskStore(out).load("frame2")["masks"]
    (source / "frame2.json").write_text((source / "frame4.json").read_text())
    assert import_quietly(source, frames, out).made == 1
    store = MaskStore(out)
    assert store.load("frame2")["masks"] == store.load("frame4")["masks"] != former
    (source / "frame1.json").touch()
    assert import_quietly(source, frames, out).made == 0, "rewritten with the same masks"
    put_noise(frames, "frame3.png", seed=8)
    assert import_quietly(source, frames, out).made == 0
    assert MaskStore(out).contents["frame3"].size == (frames / "frame3.png").stat().st_size


def put_coco(path: Path, names: list[str]) -> Path:
    """Write a COCO file with the MASKS of these images, of which it says nothing but the masks."""
    images = [{"id": k, "file_name": f"{name}.jpg"} for k, name in enumerate(names)]
    annotations = [
        {"id": 0, "image_id": k, "segmentation": as_rle(record(mask))["segmentation"]}
        for k, name in enumerate(names)
        for mask in MASKS[name]
    ]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def test_masks_without_scores_have_nan_and_are_painted_and_inspected(
    images: Path, tmp_path: Path, capsys
):
    path = put_coco(tmp_path / "coco.json", [*MASKS])
    arguments = [path, images, tmp_path / "out"]
    assert cli.main(["masks", "import", *map(str, arguments)]) == 0
    page = capsys.readouterr().out
    assert "masks to import, format coco (COCO JSON): 5 of 5 images, 10 masks" in page
    store = MaskStore(tmp_path / "out")
    for name, masks in MASKS.items():
        assert (store.id_map(name) == painted(masks)).all(), name
        scores = [m[k] for m in store.load(name)["masks"] for k in ("predicted_iou", "point")]
        assert np.isnan(np.hstack([*scores, np.nan])).all()
    assert cli.main(["masks", "inspect", str(tmp_path / "out")]) == 0
    assert "predicted_iou        unknown" in capsys.readouterr().out


def test_a_repeated_import_follows_the_changed_images_of_a_coco_file(images: Path, tmp_path: Path):
    path, out = put_coco(tmp_path / "coco.json", ["frame1", "frame2", "frame3"]), tmp_path / "out"
    summary = import_quietly(path, images, out, images_per_shard=1)
    assert (summary.made, set(summary.errors)) == (5, {"frame0", "frame4"})
    before = {shard: shard.stat().st_mtime_ns for shard in shard_paths(out)}
    path.touch()
    assert import_quietly(path, images, out).made == 0
    assert {shard: shard.stat().st_mtime_ns for shard in shard_paths(out)} == before
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][1:]
    path.write_text(json.dumps(content))
    assert import_quietly(path, images, out).made == 1
    changed = [shard for shard in shard_paths(out) if shard.stat().st_mtime_ns != before[shard]]
    assert len(changed) == 1
    assert MaskStore(out).load("frame1")["masks"] == []


def test_a_coco_file_may_lie_among_the_images(images: Path, tmp_path: Path):
    path = put_coco(images / "_annotations.coco.json", [*MASKS])
    assert import_quietly(path, images, tmp_path / "out").masks == 10


def test_the_format_may_be_stated(images: Path, tmp_path: Path, capsys):
    source = put_masks(tmp_path / "sam", write_json)
    arguments = [str(source), str(images), str(tmp_path / "out")]
    assert cli.main(["masks", "import", *arguments, "--format", "ultralytics"]) == 14
    page = capsys.readouterr().out
    assert "format ultralytics (results of ultralytics): 5 of 5 images" in page
    assert "frame3.json': result 0 has no 'segments'" in page
    assert cli.main(["masks", "import", *arguments, "--format", "yolo"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "yolo" in line
    assert "ultralytics" in line


def test_id_maps_arrays_and_dumps_give_the_same_masks(images: Path, tmp_path: Path):
    """Of disjoint masks, which every format can hold."""
    ids = {name: painted(masks) for name, masks in MASKS.items()}
    for name, numbers in ids.items():
        masks = np.stack([numbers == k for k in range(1, 6)])
        for folder in ("maps", "arrays", "dumps"):
            (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(numbers.astype(np.uint16)).save(tmp_path / "maps" / f"{name}.png")
        present = masks[masks.any((1, 2))]
        np.savez(tmp_path / "arrays" / name, masks=present, scores=np.ones(len(present)))
        dump = {"masks": present.tolist(), "scores": [0.5] * len(present)}
        (tmp_path / "dumps" / f"{name}.json").write_text(json.dumps(dump))
    for folder in ("maps", "arrays", "dumps"):
        out = tmp_path / f"{folder}-out"
        assert import_quietly(tmp_path / folder, images, out).errors == {}
        store = MaskStore(out)
        for name, numbers in ids.items():
            regions = (store.id_map(name) > 0) == (numbers > 0)
            assert regions.all()
            assert len(store.load(name)["masks"]) == len({*numbers.flat} - {0})
