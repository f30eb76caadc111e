"""Pairing of images with label maps."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_files import label_map, put, put_all

from sfss_ray.data.decoding import image_size, read_image
from sfss_ray.data.folders import read_labels
from sfss_ray.data.pairing import match_labels, pair_labels
from sfss_ray.errors import DataError


def pairing_error(*arguments, **options) -> str:
    """Return the message of the DataError, which must be one line."""
    with pytest.raises(DataError) as refused:
        pair_labels(*arguments, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def write_folders(
    root: Path, images: tuple[str, ...], labels: tuple[str, ...]
) -> tuple[Path, Path]:
    """Write images and label maps of these names and return the two folders."""
    put_all(root / "images", *images)
    for name in labels:
        put(root / "labels" / name, label_map([0, 1]))
    return root / "images", root / "labels"


def test_images_and_labels_are_paired_by_id_whatever_the_suffix(tmp_path: Path):
    folders = write_folders(tmp_path, ("a.jpg", "x/b.png"), ("a.png", "x/b.png"))
    pairs = pair_labels(*folders)
    assert [p.image_id for p in pairs] == ["a", "x/b"]
    assert [p.label_path for p in pairs] == [folders[1] / "a.png", folders[1] / "x/b.png"]


@pytest.mark.parametrize("ending", ["labelTrainIds", "labelIds"])
def test_cityscapes_names_are_paired(ending, tmp_path: Path):
    folders = write_folders(
        tmp_path,
        ("aachen/1_leftImg8bit.png",),
        (f"aachen/1_gtFine_{ending}.png", "aachen/1_gtFine_color.png"),
    )
    (pair,) = pair_labels(*folders)
    assert pair.label_path.name == f"1_gtFine_{ending}.png"


def test_label_ids_are_preferred_where_cityscapes_has_both_encodings(tmp_path: Path):
    """cityscapesScripts' evaluation also reads labelIds."""
    labels = ("1_gtFine_labelIds.png", "1_gtFine_labelTrainIds.png", "1_gtFine_instanceIds.png")
    folders = write_folders(tmp_path, ("1_leftImg8bit.png",), labels)
    (pair,) = pair_labels(*folders)
    assert pair.label_path.name == "1_gtFine_labelIds.png"
    (pair,) = pair_labels(*folders, format_name="train_ids")
    assert pair.label_path.name == "1_gtFine_labelTrainIds.png"


def test_images_without_labels_are_named(tmp_path: Path):
    images = ("a.png", "b.png", "c.png", "d.png", "e.png")
    folders = write_folders(tmp_path, images, ("a.png",))
    message = pairing_error(*folders)
    assert "val images without labels: 'b', 'c', 'd' and 1 more" in message
    assert str(folders[1]) in message


def test_labels_without_images_are_named(tmp_path: Path):
    message = pairing_error(*write_folders(tmp_path, ("a.png",), ("a.png", "b.png")))
    assert "val labels without images: 'b';" in message


def test_the_role_of_the_folders_is_named(tmp_path: Path):
    folders = write_folders(tmp_path, ("a.png",), ("a.png", "b.png"))
    assert pairing_error(*folders, "training").startswith("training labels without images")


def test_a_cityscapes_label_without_an_image_is_named(tmp_path: Path):
    labels = ("1_gtFine_labelIds.png", "2_gtFine_labelIds.png")
    message = pairing_error(*write_folders(tmp_path, ("1_leftImg8bit.png",), labels))
    assert "'2_gtFine_labelIds'" in message
    assert "'1_gtFine_labelIds'" not in message


def test_two_labels_with_the_same_id_are_refused(tmp_path: Path):
    message = pairing_error(*write_folders(tmp_path, ("a.png",), ("a.png", "a.tif")))
    assert message.startswith("val labels: ")
    assert "'a.tif'" in message


def test_a_folder_without_labels_is_named(tmp_path: Path):
    images, _ = write_folders(tmp_path, ("a.png",), ())
    (tmp_path / "empty").mkdir()
    assert "no label map" in pairing_error(images, tmp_path / "empty")
    assert "does not exist" in pairing_error(images, tmp_path / "nowhere")


def test_splits_that_only_one_folder_has_are_counted_in_both_directions(tmp_path: Path):
    images = ("train/a.png", "test/b.png", "test/c.png")
    folders = write_folders(tmp_path, images, ("train/a.png", "val/d.png"))
    matching = match_labels(*folders)
    assert [pair.image_id for pair in matching.pairs] == ["train/a"]
    assert (matching.image_splits, matching.label_splits) == ({"test": 2}, {"val": 1})
    assert (matching.images_alone, matching.labels_alone) == ([], [])
    assert matching.lines() == [
        "2 images of test/ are left out: the labels have no such folder",
        "1 labels of val/ are left out: the images have no such folder",
    ]


def test_without_any_pair_no_split_is_left_out(tmp_path: Path):
    """Otherwise two unrelated folders would pass as a data set of unlabelled splits."""
    matching = match_labels(*write_folders(tmp_path, ("test/a.png",), ("val/b.png",)))
    assert (matching.pairs, matching.image_splits, matching.label_splits) == ([], {}, {})
    assert (matching.images_alone, matching.labels_alone) == (["test/a"], ["val/b"])


def test_camvid_is_paired_as_published(shared_data):
    camvid = shared_data("camvid")
    pairs = pair_labels(camvid / "images" / "train", camvid / "labels" / "train")
    dusk = [p for p in pairs if p.image_id.startswith("0001TP")]
    assert (len(pairs), len(dusk)) == (367, 62)
    image, labels = read_image(dusk[0].path), read_labels(dusk[0].label_path)
    assert image.shape[:2] == labels.shape == image_size(dusk[0].path) == (360, 480)


def test_cityscapes_is_paired_as_published(shared_data):
    cityscapes = shared_data("cityscapes_sample")
    pairs = pair_labels(cityscapes / "leftImg8bit", cityscapes / "gtFine")
    assert len(pairs) == 4
    assert all(p.image_id.startswith("train/aachen/") for p in pairs)
    assert all(p.label_path.name.endswith("_labelIds.png") for p in pairs)
    assert image_size(pairs[0].path) == (1024, 2048)
