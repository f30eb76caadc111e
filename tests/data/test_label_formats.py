"""Label formats: tables from raw ids to target classes, and reading of raw ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_files import camvid, ids_of, put_mapillary, put_palette, put_synthia
from image_files import noise, put

from sfss_ray.data.class_sets import (
    CAMVID_11,
    CITYSCAPES_19,
    CITYSCAPES_LABEL_IDS,
    IGNORE_INDEX,
    SYNTHIA_16,
    class_set_of,
)
from sfss_ray.data.label_formats import FORMATS, make_decoding, read_raw
from sfss_ray.data.label_tables import MAPILLARY_65
from sfss_ray.data.labelled import load_labelled
from sfss_ray.errors import DataError
from sfss_ray.inspection.data_set import check_dataset

# Colours of CamVid's label_colors.txt, and their classes in the usual grouping.
COLOURS = {
    (128, 128, 128): "sky",
    (128, 64, 128): "road",
    (128, 0, 192): "road",  # lane markings
    (64, 128, 192): "car",  # pick-ups
    (192, 192, 0): "tree",  # other vegetation
    (192, 0, 192): "bicyclist",  # motorcycles
    (0, 0, 0): None,
}
# Id -> train id of Cityscapes in datasets/mapillary.py of shachoi/RobustNet, where all other ids up to
# 65 are ignored.
ROBUSTNET = {
    **{13: 0, 24: 0, 41: 0},  # road, general lane marking, manhole
    **{2: 1, 15: 1, 17: 2, 6: 3, 3: 4},  # curb, sidewalk; building; wall; fence
    **{45: 5, 47: 5, 48: 6, 50: 7},  # pole, utility pole; traffic light; front of a traffic sign
    **{30: 8, 29: 9, 27: 10, 19: 11},  # vegetation, terrain, sky, person
    **{20: 12, 21: 12, 22: 12},  # bicyclist, motorcyclist, other rider
    **{
        55: 13,
        61: 14,
        54: 15,
        58: 16,
        57: 17,
        52: 18,
    },  # car, truck, bus, on rails, motorcycle, bicycle
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_consistent(name):
    label_format = FORMATS[name]
    assert label_format.name == name
    assert IGNORE_INDEX in label_format.void
    assert not set(label_format.names) & label_format.void
    if label_format.classes:
        assert set(label_format.names.values()) == set(label_format.classes.classes)
        assert all(0 <= i < 255 for i in label_format.names)


def test_label_ids_become_train_ids():
    decoding = make_decoding("cityscapes_label_ids", CITYSCAPES_19)
    for train_id, name in enumerate(CITYSCAPES_19.classes):
        assert decoding.table[CITYSCAPES_LABEL_IDS[name]] == train_id
    assert sum(entry != IGNORE_INDEX for entry in decoding.table) == 19
    assert decoding.unknown_ids([0, 7, 33, 34, 254, 255]) == [34, 254]


def test_train_ids_are_mapped_by_name_if_their_classes_are_known():
    target = class_set_of(["car", "road"])
    decoding = make_decoding("train_ids", target, class_set_of(["road", "boat", "car"]))
    assert list(decoding.table[:4]) == [1, 255, 0, 255]
    assert decoding.unknown_ids(range(5)) == [3, 4]
    assert list(make_decoding("train_ids", target).table[:3]) == [0, 1, 255]


def test_the_classes_of_a_format_overrule_those_of_train_ids():
    decoding = make_decoding("synthia", SYNTHIA_16, CAMVID_11)
    assert decoding.label_classes is SYNTHIA_16


def test_an_unknown_format_is_refused_with_the_known_ones():
    with pytest.raises(DataError, match="labels_format is 'voc': allowed are auto, train_ids, "):
        make_decoding("voc", CITYSCAPES_19)


def test_only_the_first_channel_of_synthia_is_read(tmp_path: Path):
    decoding = make_decoding("synthia", SYNTHIA_16)
    path = put_synthia(tmp_path / "a.png", ids_of(8))
    assert set(decoding.read(path).ravel()) == {SYNTHIA_16.classes.index("car")}
    with pytest.raises(DataError, match=r"a\.png': 3 channels|a\.png': id"):
        make_decoding("train_ids", CITYSCAPES_19).read(path)


def test_raw_ids_of_palette_images_are_their_indices(tmp_path: Path):
    path = put_palette(tmp_path / "a.png", ids_of(7, 26, 34))
    for label_format in (None, FORMATS["gta5"]):
        assert np.array_equal(read_raw(path, label_format), ids_of(7, 26, 34))


def test_colour_coded_camvid_is_read_as_its_classes(tmp_path: Path):
    root = camvid(tmp_path, ids_of(0))
    (root / "labels/train/0001TP_000000.png").unlink()
    colours = np.array([list(COLOURS)] * 6, np.uint8)
    put(root / "images/train/0001TP_000000.png", noise(6, len(COLOURS)))
    label = put(root / "labels/train/0001TP_000000_L.png", colours)
    folder = load_labelled(root / "images", root / "labels", CAMVID_11)
    assert folder.format == "camvid_colours"
    expected = [255 if c is None else CAMVID_11.classes.index(c) for c in COLOURS.values()]
    assert folder.pairs[0].labels()[0].tolist() == expected
    report = check_dataset(root, progress=str)
    assert (report.layout, report.sound) == ("camvid", True)
    assert report.class_share["road"] == pytest.approx(100 * 2 / 6)
    colours[2, 1] = (1, 2, 3)
    put(label, colours)
    with pytest.raises(DataError, match=r"_L\.png' contain the colour \(1, 2, 3\), which is not"):
        load_labelled(root / "images", root / "labels", CAMVID_11)


def test_ids_of_mapillary_become_train_ids_as_in_robustnet(tmp_path: Path):
    decoding = make_decoding("mapillary", CITYSCAPES_19)
    assert list(decoding.table) == [ROBUSTNET.get(i, 255) for i in range(256)]
    assert decoding.unknown_ids(range(256)) == list(range(66, 255))
    assert decoding.label_classes == CITYSCAPES_19
    ids = np.resize(np.arange(66, dtype=np.uint8), (2, 66))
    put(tmp_path / "images/a.png", noise(2, 66))
    put_mapillary(tmp_path / "labels/a.png", ids)
    folder = load_labelled(tmp_path / "images", tmp_path / "labels", CITYSCAPES_19)
    assert folder.format == "mapillary"
    expected = np.array([ROBUSTNET.get(i, 255) for i in range(66)])
    assert np.array_equal(folder.pairs[0].labels(), expected[ids])
    report = check_dataset(tmp_path, progress=str)
    assert (report.layout, report.sound) == ("mapillary", True)


def test_all_classes_of_mapillary_are_train_ids_of_a_list():
    """The last line of the list stands for id 65."""
    classes = class_set_of(MAPILLARY_65)
    decoding = make_decoding("train_ids", classes, class_set_of([*MAPILLARY_65, "Unlabeled"]))
    assert list(decoding.table[:66]) == [*range(65), 255]
    assert not decoding.unknown_ids([65, 255])
