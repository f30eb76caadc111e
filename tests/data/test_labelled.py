"""Loading of labelled folders: every format is mapped to the target classes by name."""

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
    synthia,
)
from image_files import put
from PIL import Image

from sfss_ray.config import Config, override
from sfss_ray.data.class_sets import (
    CAMVID_11,
    CITYSCAPES_19,
    SYNTHIA_16,
    ClassSet,
    class_set_of,
)
from sfss_ray.data.label_formats import FORMATS
from sfss_ray.data.labelled import LabelledFolder, PairOptions, class_list, load_labelled
from sfss_ray.errors import DataError
from sfss_ray.inspection.data_set import check_dataset


def load(root: Path, target: ClassSet, images="images", labels="labels", **options):
    """Load two folders below a root under a config with these options."""
    return load_labelled(root / images, root / labels, target, override(Config(), options))


def first_row(folder: LabelledFolder) -> list[int]:
    """Return the first row of the first label map."""
    return folder.pairs[0].labels()[0].tolist()


def indices_of(classes: ClassSet, *names: str | None) -> list[int]:
    """Return the indices of class names; None stands for 255."""
    return [255 if n is None else classes.classes.index(n) for n in names]


def test_gta5_palette_indices_are_label_ids(tmp_path: Path):
    root = gta5(tmp_path, ids_of(ROAD, BUILDING, CAR, 0, 3, 34))
    folder = load(root, CITYSCAPES_19)
    assert folder.format == "gta5"
    expected = indices_of(CITYSCAPES_19, "road", "building", "car", None, None, None)
    assert first_row(folder)[:6] == expected


def test_a_truncated_image_is_refused_with_what_to_do(tmp_path: Path):
    root = gta5(tmp_path, ids_of(ROAD, BUILDING), ids_of(ROAD, CAR))
    image = sorted((root / "images").iterdir())[1]
    data = image.read_bytes()
    put(image, data[: len(data) * 2 // 3])
    refusal = rf"{image.name}.* (truncated|read).*: repair the file, or remove it and its partner"
    with pytest.raises(DataError, match=refusal) as refused:
        load(root, CITYSCAPES_19)
    assert "\n" not in str(refused.value)


def test_gta5_for_a_model_of_16_classes_maps_by_name(tmp_path: Path):
    root = gta5(tmp_path, ids_of(22, 27, 33, 31))  # terrain, truck, bicycle, train
    folder = load(root, SYNTHIA_16)
    assert first_row(folder)[:4] == indices_of(SYNTHIA_16, None, None, "bicycle", None)
    assert "ignored: terrain, truck, train" in "\n".join(folder.describe(SYNTHIA_16))


def test_synthia_class_ids_are_in_the_first_channel(tmp_path: Path):
    root = synthia(tmp_path, ids_of(1, 3, 12, 17, 21, 0, 13, 22, 10))
    names = ("sky", "road", "motorcycle", "rider", "wall", None, None, None, "person")
    for target in (SYNTHIA_16, CITYSCAPES_19):
        folder = load(root, target, "RGB", "GT/LABELS")
        assert folder.format == "synthia"
        assert first_row(folder) == indices_of(target, *names)
    lines = "\n".join(folder.describe(CITYSCAPES_19))
    assert "labels cannot show: terrain, truck, train" in lines


def test_camvid_is_detected_by_its_drives_and_void_is_ignored(tmp_path: Path):
    root = camvid(tmp_path, ids_of(0, 8, 10, 11, 4, 5, 6, 9))
    folder = load(root, CAMVID_11)
    assert folder.format == "camvid"
    assert "synonyms" not in "\n".join(folder.describe(CAMVID_11))
    assert first_row(folder)[:4] == indices_of(CAMVID_11, "sky", "car", "bicyclist", None)
    folder = load(root, CITYSCAPES_19)
    names = ("sky", "car", None, None, "sidewalk", "vegetation", "traffic sign", "person")
    assert first_row(folder)[:8] == indices_of(CITYSCAPES_19, *names)
    lines = folder.describe(CITYSCAPES_19)
    assert (
        "matched as synonyms: pavement = sidewalk, tree = vegetation, sign = traffic sign,"
        " pedestrian = person" in lines
    )
    assert "classes of the labels that are ignored: bicyclist" in lines


def test_camvid_ids_under_other_names_are_train_ids_unless_the_format_is_named(tmp_path: Path):
    root = plain(tmp_path, ids_of(0, 8, 10))
    folder = load(root, CAMVID_11)
    assert folder.format == "train_ids"
    root = plain(tmp_path / "void", ids_of(0, 11))
    with pytest.raises(
        DataError, match=r"contain id 11, but the model has 11 .*labels_format: .*camvid"
    ):
        load(root, CAMVID_11)
    assert first_row(load(root, CAMVID_11, labels_format="camvid"))[:2] == [0, 255]


def test_cityscapes_encodings_are_reported_and_can_be_chosen(tmp_path: Path):
    label_ids, train_ids = ids_of(ROAD, CAR), ids_of(0, 18)
    root = cityscapes(tmp_path, label_ids, train_ids)
    auto = load(root, CITYSCAPES_19, "leftImg8bit", "gtFine")
    assert auto.format == "cityscapes_label_ids"
    assert first_row(auto)[:2] == indices_of(CITYSCAPES_19, "road", "car")
    assert "the labelIds are used" in "\n".join(auto.describe(CITYSCAPES_19))
    named = load(root, CITYSCAPES_19, "leftImg8bit", "gtFine", labels_format="train_ids")
    assert (named.format, first_row(named)[:2]) == ("train_ids", [0, 18])
    # labelTrainIds index Cityscapes' 19 classes for every model: 18 is bicycle, the last of SYNTHIA.
    (root / "gtFine/train/aachen/a_gtFine_labelIds.png").unlink()
    sixteen = load(root, SYNTHIA_16, "leftImg8bit", "gtFine")
    assert first_row(sixteen)[:2] == indices_of(SYNTHIA_16, "road", "bicycle")


def test_a_class_list_names_the_ids_of_a_plain_folder(tmp_path: Path):
    root = plain(tmp_path, ids_of(0, 1, 2, 255), classes="# own classes\ncar\nboat\nroad\n")
    folder = load(root, CITYSCAPES_19)
    assert first_row(folder)[:4] == indices_of(CITYSCAPES_19, "car", None, "road", None)
    listed = load(root, CITYSCAPES_19, labels_classes="sky,car,road")
    assert first_row(listed)[:3] == indices_of(CITYSCAPES_19, "sky", "car", "road")


def test_labels_without_a_common_class_name_are_refused(tmp_path: Path):
    root = plain(tmp_path, ids_of(0), classes="boat\n")
    with pytest.raises(DataError, match="share no class name with cityscapes-19"):
        load(root, CITYSCAPES_19)


@pytest.mark.parametrize(
    ("name", "wrong"), [("gta5", 40), ("cityscapes_label_ids", 34), ("synthia", 23), ("camvid", 12)]
)
def test_ids_outside_a_format_are_refused_with_the_file(name, wrong, tmp_path: Path):
    root = plain(tmp_path, ids_of(7), ids_of(7, wrong))
    with pytest.raises(DataError, match=rf"1\.png' contain id {wrong}, which is not a {name} id"):
        load(root, FORMATS[name].classes or CITYSCAPES_19, labels_format=name)


def test_pairs_of_unequal_size_are_refused_for_scoring_and_skipped_for_training(tmp_path: Path):
    root = gta5(tmp_path, ids_of(ROAD), ids_of(CAR))
    put_palette(root / "labels" / "00002.png", ids_of(CAR, size=(6, 8)))
    folders = root / "images", root / "labels", CITYSCAPES_19
    with pytest.raises(DataError, match=r"00002\.png' are 8x6 but their image is 9x6"):
        load_labelled(*folders)
    skip = PairOptions(skip_unequal=True)
    folder = load_labelled(*folders, options=skip)
    assert [p.image_id for p in folder.pairs] == ["00001"]
    assert folder.skipped == ("00002",)
    assert "1 pairs skipped" in "\n".join(folder.describe(CITYSCAPES_19))
    put_palette(root / "labels" / "00001.png", ids_of(CAR, size=(6, 8)))
    with pytest.raises(DataError, match="every pair differs in size"):
        load_labelled(*folders, options=skip)


def test_damaged_label_maps_are_named(tmp_path: Path):
    root = plain(tmp_path, ids_of(0))
    put(root / "labels" / "0.png", b"a letter")
    with pytest.raises(DataError, match=r"0\.png': cannot be read"):
        load(root, CITYSCAPES_19)


def test_custom_classes_are_mapped_by_name(tmp_path: Path):
    root = gta5(tmp_path, ids_of(ROAD, CAR))
    assert first_row(load(root, class_set_of(["car", "road"])))[:2] == [1, 0]


def test_published_camvid_is_read_without_options(shared_data):
    root = shared_data("camvid")
    folder = load_labelled(root / "images/val", root / "labels/val", CAMVID_11)
    assert (folder.format, len(folder.pairs)) == ("camvid", 101)
    assert {*np.unique(folder.pairs[0].labels())} <= {*range(11), 255}


@pytest.mark.parametrize("void", [255, 254])
def test_labels_without_a_labelled_pixel_are_refused(void, tmp_path: Path):
    """Otherwise all scores would be NaN. 254 is not a train id of Cityscapes, 255 is ignored."""
    for name, shape in (("images", (4, 6, 3)), ("labels", (4, 6))):
        (tmp_path / name).mkdir()
        for k in range(2):
            pixels = np.full(shape, void, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{k}.png")
    reason = "no pixel of 2 label maps has a class" if void == 255 else "contain id 254"
    with pytest.raises(DataError, match=reason):
        load_labelled(tmp_path / "images", tmp_path / "labels", CITYSCAPES_19)
    with_class = np.full((4, 6), 255, np.uint8)
    with_class[0, 0] = 3
    Image.fromarray(with_class).save(tmp_path / "labels" / "1.png")
    Image.fromarray(np.full_like(with_class, 255)).save(tmp_path / "labels" / "0.png")
    assert len(load_labelled(tmp_path / "images", tmp_path / "labels", CITYSCAPES_19).pairs) == 2


def test_ids_outside_the_class_set_are_refused_with_the_file(tmp_path: Path):
    root = plain(tmp_path, ids_of(0, 18, 255), ids_of(0, 19, 21))
    with pytest.raises(
        DataError,
        match=r"1\.png' contain id 19, but the model has 19 classes \(cityscapes-19: 0 to 18",
    ):
        load(root, CITYSCAPES_19)


def test_void_is_not_a_class_of_published_camvid(shared_data):
    root = shared_data("camvid")
    folders = root / "images/val", root / "labels/val", CAMVID_11
    train_ids = override(Config(), {"labels_format": "train_ids"})
    with pytest.raises(DataError, match="contain id 11, but the model has 11 classes"):
        load_labelled(*folders, train_ids)


def test_a_class_list_is_searched_in_the_folder_and_its_parent(tmp_path: Path):
    (tmp_path / "labels").mkdir()
    assert class_list(tmp_path / "labels") is None
    (tmp_path / "classes.txt").write_text("road\n\n# nothing else\n sky \n")
    listed = class_list(tmp_path / "labels")
    assert listed is not None
    assert listed.classes == ("road", "sky")
    (tmp_path / "labels" / "classes.txt").write_text("car\n")
    assert class_list(tmp_path / "labels") == class_set_of(["car"])


def test_progress_names_the_role_of_the_folder(tmp_path: Path):
    root, lines = plain(tmp_path, ids_of(0)), []
    load_labelled(
        root / "images",
        root / "labels",
        CITYSCAPES_19,
        options=PairOptions(role="training"),
        progress=lines.append,
    )
    assert lines[-1].startswith("checked training images and labels 1/1")


def binary(root: Path) -> Path:
    """Write label maps of 0 and 255 and return the root."""
    return plain(root, ids_of(0, 255), ids_of(0), ids_of(255))


def test_labels_of_0_and_255_are_refused_unless_their_format_is_named(tmp_path: Path):
    """255 is the object's value in many tools, but ignored here."""
    root, two = binary(tmp_path), class_set_of(["background", "crack"])
    folders = root / "images", root / "labels", two
    with pytest.raises(DataError, match=r"only 0 and 255.*save the pixels of 'crack' as 1"):
        load_labelled(*folders)
    named = load_labelled(*folders, override(Config(), {"labels_format": "train_ids"}))
    assert "255 is ignored" in "\n".join(named.describe(two))
    report = check_dataset(root, classes="background,crack", progress=str)
    assert not report.sound
    assert "save the pixels of 'crack' as 1" in "\n".join(report.lines())
    unnamed = check_dataset(root, progress=str)  # there may be only one class
    assert unnamed.sound
    assert "if 255 is an object, save its pixels as 1" in "\n".join(unnamed.lines())


def test_other_labels_of_two_classes_cause_no_warning(tmp_path: Path):
    two = class_set_of(["background", "crack"])
    for number, maps in enumerate(([ids_of(0, 1, 255)], [ids_of(0, 255), ids_of(1)], [ids_of(0)])):
        root = plain(tmp_path / str(number), *maps)
        assert not load_labelled(root / "images", root / "labels", two).notes
    root = plain(tmp_path / "many", ids_of(0, 255))
    assert not load_labelled(root / "images", root / "labels", CITYSCAPES_19).notes
