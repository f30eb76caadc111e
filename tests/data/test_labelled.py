"""Label maps of every format, mapped to the wanted classes by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_files import (
    BUILDING,
    CAR,
    ROAD,
    camvid,
    cityscapes,
    gta5,
    ids_of,
    plain,
    put_palette,
    put_synthia,
    synthia,
)
from image_files import put
from PIL import Image

from sfss_ray.config import Config, override
from sfss_ray.data.class_sets import (
    CAMVID_11,
    CITYSCAPES_19,
    SYNTHIA_13,
    SYNTHIA_16,
    ClassSet,
    class_set_of,
)
from sfss_ray.data.label_formats import FORMATS, make_decoding, recognise
from sfss_ray.data.labelled import LabelledFolder, load_labelled
from sfss_ray.errors import DataError


def load(root: Path, wanted: ClassSet, images="images", labels="labels", **config):
    knobs = override(Config(), config)
    return load_labelled(root / images, root / labels, wanted, knobs)


def first_row(folder: LabelledFolder) -> list[int]:
    return folder.pairs[0].labels()[0].tolist()


def of(classes: ClassSet, *names: str | None) -> list[int]:
    """Indices of class names; None is ignored."""
    return [255 if n is None else classes.classes.index(n) for n in names]


def test_sets_13_and_16_are_parts_of_19():
    missing = [c for c in CITYSCAPES_19.classes if c not in SYNTHIA_16.classes]
    assert missing == ["terrain", "truck", "train"]
    missing = [c for c in SYNTHIA_16.classes if c not in SYNTHIA_13.classes]
    assert sorted(missing) == ["fence", "pole", "wall"]


def test_gta5_palette_indices_are_label_ids(tmp_path: Path):
    root = gta5(tmp_path, ids_of(ROAD, BUILDING, CAR, 0, 3, 34))
    folder = load(root, CITYSCAPES_19)
    assert folder.format == "gta5"
    expected = of(CITYSCAPES_19, "road", "building", "car", None, None, None)
    assert first_row(folder)[:6] == expected


def test_gta5_for_a_model_of_16_classes_maps_by_name(tmp_path: Path):
    root = gta5(tmp_path, ids_of(22, 27, 33, 31))  # terrain, truck, bicycle, train
    folder = load(root, SYNTHIA_16)
    assert first_row(folder)[:4] == of(SYNTHIA_16, None, None, "bicycle", None)
    assert "ignored: terrain, truck, train" in "\n".join(folder.describe(SYNTHIA_16))


def test_synthia_class_ids_stand_in_the_first_channel(tmp_path: Path):
    root = synthia(tmp_path, ids_of(1, 3, 12, 17, 21, 0, 13, 22, 10))
    names = ("sky", "road", "motorcycle", "rider", "wall", None, None, None, "person")
    for wanted in (SYNTHIA_16, CITYSCAPES_19):
        folder = load(root, wanted, "RGB", "GT/LABELS")
        assert folder.format == "synthia"
        assert first_row(folder) == of(wanted, *names)
    lines = "\n".join(folder.describe(CITYSCAPES_19))
    assert "labels cannot show: terrain, truck, train" in lines


def test_camvid_is_told_by_its_drives_and_void_is_ignored(tmp_path: Path):
    root = camvid(tmp_path, ids_of(0, 8, 10, 11, 4, 5, 6, 9))
    folder = load(root, CAMVID_11)
    assert folder.format == "camvid"
    assert "synonyms" not in "\n".join(folder.describe(CAMVID_11))
    assert first_row(folder)[:4] == of(CAMVID_11, "sky", "car", "bicyclist", None)
    folder = load(root, CITYSCAPES_19)
    names = ("sky", "car", None, None, "sidewalk", "vegetation", "traffic sign", "person")
    assert first_row(folder)[:8] == of(CITYSCAPES_19, *names)
    lines = folder.describe(CITYSCAPES_19)
    assert (
        "matched as synonyms: pavement = sidewalk, tree = vegetation, sign = traffic sign,"
        " pedestrian = person" in lines
    )
    assert "classes of the labels that are ignored: bicyclist" in lines


def test_the_same_ids_under_other_names_are_train_ids_unless_named(tmp_path: Path):
    root = plain(tmp_path, ids_of(0, 8, 10))
    folder = load(root, CAMVID_11)
    assert folder.format == "train_ids"
    root = plain(tmp_path / "void", ids_of(0, 11))
    with pytest.raises(
        DataError, match=r"hold id 11, but the model has 11 .*labels_format: .*camvid"
    ):
        load(root, CAMVID_11)
    assert first_row(load(root, CAMVID_11, labels_format="camvid"))[:2] == [0, 255]


def test_cityscapes_encodings_are_named_and_can_be_chosen(tmp_path: Path):
    label_ids, train_ids = ids_of(ROAD, CAR), ids_of(0, 18)
    root = cityscapes(tmp_path, label_ids, train_ids)
    auto = load(root, CITYSCAPES_19, "leftImg8bit", "gtFine")
    assert auto.format == "cityscapes_label_ids"
    assert first_row(auto)[:2] == of(CITYSCAPES_19, "road", "car")
    assert "the labelIds are taken" in "\n".join(auto.describe(CITYSCAPES_19))
    named = load(root, CITYSCAPES_19, "leftImg8bit", "gtFine", labels_format="train_ids")
    assert (named.format, first_row(named)[:2]) == ("train_ids", [0, 18])
    # labelTrainIds are Cityscapes' 19, whatever the model has: 18 is bicycle, the 16th of SYNTHIA.
    (root / "gtFine/train/aachen/a_gtFine_labelIds.png").unlink()
    sixteen = load(root, SYNTHIA_16, "leftImg8bit", "gtFine")
    assert first_row(sixteen)[:2] == of(SYNTHIA_16, "road", "bicycle")


def test_a_class_list_names_the_ids_of_a_plain_folder(tmp_path: Path):
    root = plain(tmp_path, ids_of(0, 1, 2, 255), classes="# mine\ncar\nboat\nroad\n")
    folder = load(root, CITYSCAPES_19)
    assert first_row(folder)[:4] == of(CITYSCAPES_19, "car", None, "road", None)
    named = load(root, CITYSCAPES_19, labels_classes="sky,car,road")
    assert first_row(named)[:3] == of(CITYSCAPES_19, "sky", "car", "road")


def test_labels_without_a_common_name_are_refused(tmp_path: Path):
    root = plain(tmp_path, ids_of(0), classes="boat\n")
    with pytest.raises(DataError, match="share no class name with cityscapes-19"):
        load(root, CITYSCAPES_19)


@pytest.mark.parametrize(
    ("name", "wrong"), [("gta5", 40), ("cityscapes_label_ids", 34), ("synthia", 23), ("camvid", 12)]
)
def test_ids_outside_a_format_are_refused_with_the_file(name, wrong, tmp_path: Path):
    root = plain(tmp_path, ids_of(7), ids_of(7, wrong))
    with pytest.raises(DataError, match=rf"1\.png' hold id {wrong}, which {name} has not"):
        load(root, FORMATS[name].classes or CITYSCAPES_19, labels_format=name)


def test_unequal_pairs_are_refused_for_scoring_and_skipped_for_training(tmp_path: Path):
    root = gta5(tmp_path, ids_of(ROAD), ids_of(CAR))
    put_palette(root / "labels" / "00002.png", ids_of(CAR, size=(6, 8)))
    folders = root / "images", root / "labels", CITYSCAPES_19
    with pytest.raises(DataError, match=r"00002\.png' are 8x6 but their image is 9x6"):
        load_labelled(*folders)
    kept = load_labelled(*folders, skip_unequal=True)
    assert [p.image_id for p in kept.pairs] == ["00001"]
    assert kept.skipped == ("00002",)
    assert "1 pairs skipped" in "\n".join(kept.describe(CITYSCAPES_19))
    put_palette(root / "labels" / "00001.png", ids_of(CAR, size=(6, 8)))
    with pytest.raises(DataError, match="every pair differs in size"):
        load_labelled(*folders, skip_unequal=True)


def test_ordinary_16_bit_labels_are_no_synthia(tmp_path: Path):
    path = put(tmp_path / "a.png", ids_of(0, 3).astype(np.uint16))
    assert recognise([path]).format == "train_ids"
    assert recognise([put_synthia(tmp_path / "b.png", ids_of(3))]).format == "synthia"
    assert recognise([put_synthia(tmp_path / "c.png", ids_of(3)), path]).format == "train_ids"


def test_the_other_channels_of_synthia_are_never_read(tmp_path: Path):
    decoding = make_decoding("synthia", SYNTHIA_16)
    path = put_synthia(tmp_path / "a.png", ids_of(8))
    assert set(decoding.read(path).ravel()) == {SYNTHIA_16.classes.index("car")}
    with pytest.raises(DataError, match=r"a\.png': 3 channels|a\.png': id"):
        make_decoding("train_ids", CITYSCAPES_19).read(path)


def test_damaged_labels_are_named(tmp_path: Path):
    root = plain(tmp_path, ids_of(0))
    put(root / "labels" / "0.png", b"a letter")
    with pytest.raises(DataError, match=r"0\.png': cannot be read"):
        load(root, CITYSCAPES_19)


def test_custom_classes_train_by_name(tmp_path: Path):
    root = gta5(tmp_path, ids_of(ROAD, CAR))
    assert first_row(load(root, class_set_of(["car", "road"])))[:2] == [1, 0]


def test_real_camvid_needs_no_option(shared_data):
    root = shared_data("camvid")
    folder = load_labelled(root / "images/val", root / "labels/val", CAMVID_11)
    assert (folder.format, len(folder.pairs)) == ("camvid", 101)
    assert {*np.unique(folder.pairs[0].labels())} <= {*range(11), 255}


@pytest.mark.parametrize("void", [255, 254])
def test_labels_without_a_labelled_pixel_are_refused(void, tmp_path: Path):
    """All scores would be NaN. 254 belongs to no class of these, 255 is ignored."""
    for name, shape in (("images", (4, 6, 3)), ("labels", (4, 6))):
        (tmp_path / name).mkdir()
        for k in range(2):
            pixels = np.full(shape, void, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{k}.png")
    reason = "no pixel of 2 label maps has a class" if void == 255 else "hold id 254"
    with pytest.raises(DataError, match=reason):
        load_labelled(tmp_path / "images", tmp_path / "labels", CITYSCAPES_19)
    one = np.full((4, 6), 255, np.uint8)
    one[0, 0] = 3
    for k in range(2):
        Image.fromarray(one if k else np.full_like(one, 255)).save(tmp_path / "labels" / f"{k}.png")
    assert len(load_labelled(tmp_path / "images", tmp_path / "labels", CITYSCAPES_19).pairs) == 2
