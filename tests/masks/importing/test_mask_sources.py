"""Mask sources matched with images: counts on both sides, stamps, and Cityscapes' names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from amg_samples import MASKS, SIZE, as_rle, put_masks, record, write_folder, write_json
from PIL import Image

from sfss_ray.errors import DataError
from sfss_ray.masks.importing.mask_sources import MaskCollection, MaskFile, open_collection


def put_coco(path: Path, *names: str) -> Path:
    """Write a COCO file with the MASKS of these images."""
    images, annotations = [], []
    for k, name in enumerate(names):
        images.append({"id": k, "file_name": f"{name}.png", "height": SIZE[0], "width": SIZE[1]})
        for mask in MASKS.get(name, []):
            runs = as_rle(record(mask))["segmentation"]
            annotations.append({"id": len(annotations), "image_id": k, "segmentation": runs})
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def put_map(path: Path, number: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(SIZE, number, np.uint8)).save(path)
    return path


def test_a_coco_file_is_counted_on_both_sides(tmp_path: Path):
    path = put_coco(tmp_path / "coco.json", "frame0", "frame3", "other")
    collection = open_collection(path, ["frame0", "frame1", "frame2", "frame3"])
    assert set(collection.masks) == {"frame0", "frame3"}
    assert collection.reasons["frame1"] == f"no masks: it is not listed in {str(path)!r}"
    assert collection.lines() == [
        "masks to import, format coco (COCO JSON): 2 of 4 images, 3 masks",
        "masks to import, images without masks: 2, first 'frame1'",
        "masks to import, entries without an image: 1, first 'other.png'",
    ]
    assert len(collection.masks["frame3"].read(SIZE)) == 3


def test_annotations_without_an_image_have_a_line():
    lines = MaskCollection("coco", {}, {}, [], 0, strays=3).lines()
    assert lines[-1].endswith("annotations of images that it does not list: 3")


def test_an_image_with_two_entries_has_no_masks(tmp_path: Path):
    path = put_coco(tmp_path / "coco.json", "frame1", "frame3", "frame3")
    collection = open_collection(path, ["frame1", "frame3"])
    assert set(collection.masks) == {"frame1"}
    assert "has two entries for it, 'frame3.png' (id 1) and" in collection.reasons["frame3"]


@pytest.mark.parametrize(
    ("format_name", "reason"),
    [
        ("amg", "no masks: neither b/metadata.csv nor b.json in"),
        ("arrays", "no masks: no b.npz or b.npy in"),
        ("id_map", "no masks: no map of 'b' in"),
    ],
)
def test_images_without_a_file_are_told_which(format_name, reason, tmp_path: Path):
    (tmp_path / "a.json").write_text("[]")
    np.savez(tmp_path / "a.npz", masks=np.zeros((0, *SIZE)))
    put_map(tmp_path / "a.png")
    put_map(tmp_path / "x.png")
    collection = open_collection(tmp_path, ["a", "deep/b_leftImg8bit", "deep/b"], format_name)
    assert set(collection.masks) == {"a"}
    assert reason in collection.reasons["deep/b"]
    spare = [f"{tmp_path.name}/x.png"] if format_name == "id_map" else []
    assert collection.spare == spare


def test_id_maps_of_cityscapes_belong_to_its_images(tmp_path: Path):
    """Of its renderings the instances are used; names differ from those of images in their ending."""
    for city, kinds in {
        "aachen": ("instanceIds", "labelIds", "color"),
        "bonn": ("instanceIds",),
    }.items():
        for kind in kinds:
            put_map(tmp_path / city / f"{city}_000001_000019_gtFine_{kind}.png")
    images = [f"{city}/{city}_000001_000019_leftImg8bit" for city in ("aachen", "bonn", "cologne")]
    collection = open_collection(tmp_path, images)
    assert collection.format == "id_map"
    paths = {image: masks.path for image, masks in collection.masks.items()}  # pyright: ignore
    assert paths == {
        images[0]: tmp_path / "aachen" / "aachen_000001_000019_gtFine_instanceIds.png",
        images[1]: tmp_path / "bonn" / "bonn_000001_000019_gtFine_instanceIds.png",
    }
    assert collection.spare == []


def test_label_ids_are_preferred_to_train_ids_and_colours(tmp_path: Path):
    put_map(tmp_path / "a_color.png")
    put_map(tmp_path / "a_gtFine_labelTrainIds.png")
    put_map(tmp_path / "a_gtFine_labelIds.png")
    (masks,) = open_collection(tmp_path, ["a"]).masks.values()
    assert masks == MaskFile(tmp_path / "a_gtFine_labelIds.png", "id_map")


def test_maps_without_an_ending_are_preferred_to_labels(tmp_path: Path):
    put_map(tmp_path / "a.png")
    put_map(tmp_path / "a_labelIds.png")
    (masks,) = open_collection(tmp_path, ["a"]).masks.values()
    assert masks == MaskFile(tmp_path / "a.png", "id_map")


def test_a_stamp_changes_with_the_files(tmp_path: Path):
    source = put_masks(tmp_path, write_folder, "frame2")
    masks = MaskFile(source / "frame2", "amg")
    stamp = masks.stamp()
    assert masks.stamp() == stamp
    assert len(masks.read(SIZE)) == 2
    os.utime(source / "frame2" / "1.png", ns=(7, 7))
    assert masks.stamp() != stamp
    os.utime(source / "frame2" / "0.png", ns=(2**62, 2**62))
    assert masks.modified_ns() == 2**62


def test_a_file_that_is_gone_is_an_error_of_its_image(tmp_path: Path):
    with pytest.raises(DataError, match=r"a\.json' cannot be read \(No such file"):
        MaskFile(tmp_path / "a.json", "amg").stamp()


def test_a_single_file_may_be_that_of_one_image(tmp_path: Path):
    source = put_masks(tmp_path, write_json, "frame2")
    collection = open_collection(source / "frame2.json", ["frame1", "frame2"])
    assert len(collection.masks["frame2"].read(SIZE)) == 2


def test_a_source_without_a_matching_image_is_refused(tmp_path: Path):
    path = put_coco(tmp_path / "coco.json", "other")
    with pytest.raises(
        DataError, match=r"none of the 1 images .* \(coco\); its first entry is 'oth"
    ):
        open_collection(path, ["frame1"])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "empty.jpg").touch()
    with pytest.raises(DataError, match=r"none of the 1 images .* found is 'empty\.jpg'"):
        open_collection(tmp_path / "folder", ["frame1"])
    with pytest.raises(DataError, match=r"'/dev/null' cannot be read as JSON \(it is empty"):
        open_collection(Path("/dev/null"), ["frame1"])
