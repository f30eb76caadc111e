"""Detection of label formats from names, bit depths and palettes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_files import ids_of, put_mapillary, put_palette, put_synthia
from image_files import encode, noise, put
from PIL import Image

from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.data.format_detection import detect_format, named_format
from sfss_ray.errors import DataError


def test_16_bit_labels_of_one_channel_are_not_synthia(tmp_path: Path):
    path = put(tmp_path / "a.png", ids_of(0, 3).astype(np.uint16))
    assert detect_format([path]).format == "train_ids"
    assert detect_format([put_synthia(tmp_path / "b.png", ids_of(3))]).format == "synthia"
    assert detect_format([put_synthia(tmp_path / "c.png", ids_of(3)), path]).format == "train_ids"


def test_only_a_palette_of_label_id_colours_is_gta5(tmp_path: Path):
    path = put_palette(tmp_path / "a.png", ids_of(7, 26))
    assert detect_format([path]).format == "gta5"
    other = Image.fromarray(ids_of(7, 26))
    other.putpalette([(37 * i) % 256 for i in range(768)])
    assert detect_format([put(tmp_path / "b.png", encode(other))]).format == "train_ids"
    small = Image.fromarray(ids_of(0, 1))
    small.putpalette([128, 64, 128, 70, 70, 70])
    assert detect_format([put(tmp_path / "c.png", encode(small))]).format == "train_ids"


def test_only_a_palette_of_mapillary_colours_at_its_ids_is_mapillary(tmp_path: Path):
    path = put_mapillary(tmp_path / "a.png", ids_of(13, 24, 65))
    assert detect_format([path]).format == "mapillary"
    assert detect_format([path, put_palette(tmp_path / "b.png", ids_of(7))]).format == "train_ids"
    gray = put(tmp_path / "c.png", ids_of(13, 24, 65))
    assert detect_format([gray]).format == "train_ids"
    assert named_format("mapillary", [gray]).format == "mapillary"
    # Version 2.0 has road at 21 and a bike lane at 13.
    later = Image.fromarray(ids_of(21, 13))
    later.putpalette([0] * 3 * 13 + [128, 64, 255] + [0] * 3 * 7 + [128, 64, 128] + [0] * 3 * 102)
    assert detect_format([put(tmp_path / "d.png", encode(later))]).format == "train_ids"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (ids_of(0, 10, 11), "camvid"),
        (ids_of(0, 255), "camvid"),
        (ids_of(0, 12), "train_ids"),
        (noise(), "camvid_colours"),
        (b"damaged", "camvid"),
    ],
    ids=["void 11", "void 255", "an id above void", "colours", "damaged"],
)
def test_camvid_is_detected_by_drive_names_and_ids(content, expected, tmp_path: Path):
    path = put(tmp_path / "0001TP_006690.png", content)
    assert detect_format([path]).format == expected
    assert detect_format([put(tmp_path / "frame1.png", content)]).format == "train_ids"


def test_names_state_the_format_without_the_files():
    label_ids = detect_format([Path("a_gtFine_labelIds.png")])
    assert (label_ids.format, label_ids.classes) == ("cityscapes_label_ids", None)
    assert label_ids.reason == "files are named *_labelIds"
    train_ids = detect_format([Path("a_gt_labelTrainIds.png")])
    assert (train_ids.format, train_ids.classes) == ("train_ids", CITYSCAPES_19)


@pytest.mark.parametrize("folder", ["sem_seg/masks", "labels/sem_seg/masks/train"])
def test_bdd100k_is_detected_by_its_folders(folder):
    detected = detect_format([Path(folder) / "a.png"])
    assert (detected.format, detected.classes) == ("train_ids", CITYSCAPES_19)
    assert detect_format([Path("masks/a.png")]).classes is None


def test_several_stated_formats_are_refused_with_an_example_of_each():
    files = [Path("a_gtFine_labelIds.png"), Path("b_gtFine_labelTrainIds.png")]
    with pytest.raises(DataError, match=r"several encodings: a_.*Ids\.png, b_.*name labels_format"):
        detect_format(files)


def test_a_named_format_keeps_the_classes_that_names_state():
    files = [Path("a_gtFine_labelTrainIds.png")]
    assert named_format("train_ids", files).classes is CITYSCAPES_19
    assert named_format("synthia", files).classes is None
    assert named_format("train_ids", [Path("a.png")]).reason == "as named"


def test_missing_files_are_train_ids_until_they_are_read():
    assert detect_format([Path("/nowhere/a.png")]).format == "train_ids"
