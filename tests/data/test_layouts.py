"""Published data sets: recognised from their root, and paired from two folders.

File names and ids are those of cityscapesScripts, DAFormer's conversion, the ACDC and Dark Zurich
archives, the Foggy Cityscapes README, AutoNUE/public-code (IDD), mmsegmentation (BDD100K) and CamVid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from dataset_files import BUILDING, CAR, ROAD, ids_of, put_palette, put_synthia
from image_files import encode, noise, put

from sfss_ray.config import Config, override
from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.data.folders import list_images
from sfss_ray.data.labelled import LabelledFolder, load_labelled
from sfss_ray.data.layouts import find_layout
from sfss_ray.data.pairing import match_labels, pair_labels
from sfss_ray.errors import DataError
from sfss_ray.inspection.data_set import DatasetReport, check_dataset

LABEL_IDS, TRAIN_IDS = ids_of(ROAD, CAR), ids_of(0, 13)  # road and car in the two encodings
ROAD_AND_CAR = {"road": 500 / 9, "car": 400 / 9}


def fill(root: Path, *names: str, ids: np.ndarray | None = None) -> Path:
    """Write images of noise, or label maps of `ids`, below a root and return the root."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".json"):
            (root / name).write_text("{}")
        else:
            content = noise() if ids is None else ids
            put(root / name, encode(content, "JPEG" if name.endswith(".jpg") else "PNG"))
    return root


def check(root: Path, **options) -> DatasetReport:
    """Return the report of `data check` under a config with these options."""
    return check_dataset(root, config=override(Config(), options), progress=str)


def load(root: Path, images: str, labels: str, **options) -> LabelledFolder:
    """Load two folders below a root as Cityscapes classes."""
    config = override(Config(), options)
    return load_labelled(root / images, root / labels, CITYSCAPES_19, config)


def present_classes(report: DatasetReport) -> dict[str, float]:
    """Return the share of each class that the labels contain, in percent."""
    return {name: share for name, share in report.class_share.items() if share}


@dataclass(frozen=True)
class Case:
    """A small data set and what it should be recognised as."""

    layout: str
    images: tuple[str, ...]
    labels: tuple[str, ...]
    ids: np.ndarray
    format: str
    auxiliary: tuple[str, ...] = ()
    """Files beside the labels that are not label maps."""
    folders: tuple[str, str] = ("", "")
    """The folders of images and labels."""


ACDC = "fog/train/GOPR0475/GOPR0475_frame_000041"
ACDC_REF = "fog/train_ref/GOPR0475/GOPR0475_frame_000041"
ZURICH = "val/night/GOPR0356/GOPR0356_frame_000321"
CITY = "train/aachen/aachen_000000_000019"
IDD = "train/201/frame0029"
CAMVID = "0001TP_006690"
CASES = {
    "ACDC": Case(
        "acdc",
        (f"rgb_anon/{ACDC}_rgb_anon.png",),
        (f"gt/{ACDC}_gt_labelIds.png",),
        LABEL_IDS,
        "cityscapes_label_ids",
        tuple(f"gt/{ACDC}_gt_{n}.png" for n in ("labelColor", "invGray", "invIds")),
        ("rgb_anon", "gt"),
    ),
    "ACDC, labelTrainIds": Case(
        "acdc",
        (f"rgb_anon/{ACDC}_rgb_anon.png", f"rgb_anon/{ACDC_REF}_rgb_ref_anon.png"),
        (f"gt/{ACDC}_gt_labelTrainIds.png", f"gt/{ACDC_REF}_gt_ref_labelTrainIds.png"),
        TRAIN_IDS,
        "train_ids",
        (f"gt/{ACDC}_gt_labelColor.png", f"gt/{ACDC_REF}_gt_ref_labelColor.png"),
        ("rgb_anon", "gt"),
    ),
    "Dark Zurich": Case(
        "dark zurich",
        (f"rgb_anon/{ZURICH}_rgb_anon.png",),
        (f"gt/{ZURICH}_gt_labelTrainIds.png",),
        TRAIN_IDS,
        "train_ids",
        (f"gt/{ZURICH}_gt_labelColor.png", f"gt/{ZURICH}_gt_invGray.png"),
        ("rgb_anon", "gt"),
    ),
    "Foggy Cityscapes": Case(
        "foggy cityscapes",
        tuple(
            f"leftImg8bit_foggy/{CITY}_leftImg8bit_foggy_beta_{beta}.png"
            for beta in ("0.005", "0.01", "0.02")
        ),
        (f"gtFine/{CITY}_gtFine_labelIds.png",),
        LABEL_IDS,
        "cityscapes_label_ids",
        (f"gtFine/{CITY}_gtFine_color.png", f"gtFine/{CITY}_gtFine_polygons.json"),
        ("leftImg8bit_foggy", "gtFine"),
    ),
    "gtCoarse": Case(
        "cityscapes gtCoarse",
        (f"leftImg8bit/{CITY}_leftImg8bit.png", "leftImg8bit/train_extra/bonn/b_leftImg8bit.png"),
        (
            f"gtCoarse/{CITY}_gtCoarse_labelTrainIds.png",
            "gtCoarse/train_extra/bonn/b_gtCoarse_labelTrainIds.png",
        ),
        TRAIN_IDS,
        "train_ids",
        (
            f"gtCoarse/{CITY}_gtCoarse_instanceTrainIds.png",
            f"gtCoarse/{CITY}_gtCoarse_instanceIds.png",
        ),
        ("leftImg8bit", "gtCoarse"),
    ),
    "IDD, level3Ids": Case(
        "idd",
        (f"leftImg8bit/{IDD}_leftImg8bit.jpg",),
        (f"gtFine/{IDD}_gtFine_labellevel3Ids.png",),
        ids_of(0, 9),
        "idd_level3",
        (
            f"gtFine/{IDD}_gtFine_instancelevel3Ids.png",
            f"gtFine/{IDD}_gtFine_labelColors.png",
            f"gtFine/{IDD}_gtFine_polygons.json",
        ),
        ("leftImg8bit", "gtFine"),
    ),
    "IDD, csTrainIds": Case(
        "idd",
        (f"leftImg8bit/{IDD}_leftImg8bit.png",),
        (f"gtFine/{IDD}_gtFine_labelcsTrainIds.png",),
        TRAIN_IDS,
        "train_ids",
        (f"gtFine/{IDD}_gtFine_instanceids.png",),
        ("leftImg8bit", "gtFine"),
    ),
    "IDD, ids": Case(
        "idd",
        (f"leftImg8bit/{IDD}_leftImg8bit.png",),
        (f"gtFine/{IDD}_gtFine_labelids.png",),
        ids_of(0, 12),
        "idd_ids",
        folders=("leftImg8bit", "gtFine"),
    ),
    "BDD100K": Case(
        "bdd100k",
        ("images/10k/train/0a0a0b1a-7c39d841.jpg",),
        ("labels/sem_seg/masks/train/0a0a0b1a-7c39d841.png",),
        TRAIN_IDS,
        "train_ids",
        ("labels/sem_seg/colormaps/train/0a0a0b1a-7c39d841.png",),
        ("images/10k", "labels/sem_seg/masks"),
    ),
    "BDD100K, 2018": Case(
        "bdd100k",
        ("seg/images/train/0a0a0b1a-7c39d841.jpg",),
        ("seg/labels/train/0a0a0b1a-7c39d841_train_id.png",),
        TRAIN_IDS,
        "train_ids",
        ("seg/color_labels/train/0a0a0b1a-7c39d841_train_color.png",),
        ("seg/images", "seg/labels"),
    ),
    "CamVid, _L": Case(
        "camvid",
        (f"701_StillsRaw_full/{CAMVID}.png",),
        (f"LabeledApproved_full/{CAMVID}_L.png",),
        np.where(ids_of(0, 1)[..., None] == 0, (128, 64, 128), (64, 0, 128)).astype(np.uint8),
        "camvid_colours",
        folders=("701_StillsRaw_full", "LabeledApproved_full"),
    ),
}


def write_case(case: Case, root: Path) -> Path:
    """Write the files of a case and return its root."""
    fill(root, *case.images, *case.auxiliary)
    return fill(root, *case.labels, ids=case.ids)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_data_set_is_recognised_from_its_root(case: Case, tmp_path: Path):
    report = check(write_case(case, tmp_path))
    assert report.sound, report.lines()
    assert (report.layout, report.pairs) == (case.layout, len(case.images))
    assert report.labels_format == case.format
    assert present_classes(report) == pytest.approx(ROAD_AND_CAR)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_two_folders_of_a_data_set_are_paired(case: Case, tmp_path: Path):
    folder = load(write_case(case, tmp_path), *case.folders)
    assert folder.format == case.format
    assert len(folder.pairs) == len(case.images)
    for pair in folder.pairs:
        assert np.array_equal(pair.labels(), TRAIN_IDS), pair.label_path


def test_foggy_images_share_one_label(tmp_path: Path):
    case = CASES["Foggy Cityscapes"]
    pairs = pair_labels(*(write_case(case, tmp_path) / folder for folder in case.folders))
    assert len({pair.path for pair in pairs}) == 3
    assert {pair.label_path for pair in pairs} == {tmp_path / case.labels[0]}


def daformer_gta(root: Path) -> Path:
    """Write palette images of labelIds beside *_labelTrainIds.png of other classes; return the root."""
    for name in ("00001", "00002"):
        fill(root, f"images/{name}.png")
        put_palette(root / "labels" / f"{name}.png", ids_of(ROAD, BUILDING))
        fill(root, f"labels/{name}_labelTrainIds.png", ids=ids_of(0, 13))
    return fill(root, "sample_class_stats.json", "labels/samples_with_class.json")


def test_gta5_converted_by_daformer_is_read_from_the_originals(tmp_path: Path):
    root = daformer_gta(tmp_path)
    report = check(root)
    assert (report.layout, report.labels_format, report.pairs) == ("gta5", "gta5", 2)
    assert set(present_classes(report)) == {"road", "building"}
    assert any("labelTrainIds" in line for line in report.notes)
    folder = load(root, "images", "labels", labels_format="train_ids")
    assert set(np.unique(folder.pairs[0].labels())) == {0, 13}
    for path in root.glob("labels/0000?.png"):
        path.unlink()
    converted = load(root, "images", "labels")
    assert converted.format == "train_ids"
    assert converted.label_classes is CITYSCAPES_19


def test_synthia_converted_by_daformer_is_read_from_the_originals(tmp_path: Path):
    fill(tmp_path, "RGB/0000000.png")
    put_synthia(tmp_path / "GT/LABELS/0000000.png", ids_of(3, 8))  # road, car
    fill(tmp_path, "GT/LABELS/0000000_labelTrainIds.png", ids=ids_of(0, 13))
    report = check(tmp_path)
    assert (report.layout, report.labels_format) == ("synthia", "synthia")
    assert present_classes(report) == pytest.approx(ROAD_AND_CAR)


@pytest.mark.parametrize(
    ("labels_format", "expected_format", "share"),
    [
        ("auto", "idd_level3", {"road": 500 / 9, "autorickshaw": 400 / 9}),
        ("train_ids", "train_ids", ROAD_AND_CAR),
        ("idd_ids", "idd_ids", {"road": 500 / 9, "animal": 400 / 9}),
    ],
)
def test_the_encoding_of_the_official_scorer_of_idd_is_preferred(
    labels_format, expected_format, share, tmp_path
):
    stem = f"gtFine/{IDD}_gtFine_label"
    fill(tmp_path, f"leftImg8bit/{IDD}_leftImg8bit.png")
    for name, ids in (("level3Ids", (0, 8)), ("csTrainIds", (0, 13)), ("ids", (0, 7))):
        fill(tmp_path, f"{stem}{name}.png", ids=ids_of(*ids))
    report = check(tmp_path, labels_format=labels_format)
    assert (report.layout, report.labels_format, report.sound) == ("idd", expected_format, True)
    assert present_classes(report) == pytest.approx(share)


@pytest.mark.parametrize(
    "name",
    [
        "instanceTrainIds",
        "instanceIds",
        "instanceids",
        "instancelevel3Ids",
        "panoptic",
        "color",
        "labelColor",
        "labelColors",
        "invGray",
        "invIds",
    ],
)
def test_renderings_beside_labels_are_not_used_as_labels(name, tmp_path: Path):
    for prefix in ("gtFine_", "gtCoarse_", "gt_", ""):
        root = fill(tmp_path / prefix, "images/a_leftImg8bit.png", f"labels/a_{prefix}{name}.png")
        with pytest.raises(DataError, match="no label map"):
            pair_labels(root / "images", root / "labels")


def test_a_label_with_the_name_of_its_image_is_used_whatever_its_ending(tmp_path: Path):
    fill(tmp_path, "images/blue_color.png", "images/left_L.png", "images/left.png")
    fill(tmp_path, *(f"labels/{n}.png" for n in ("blue_color", "left_L", "left")), ids=ids_of(0))
    pairs = pair_labels(tmp_path / "images", tmp_path / "labels")
    assert [pair.label_path.stem for pair in pairs] == [pair.path.stem for pair in pairs]


def test_labels_of_two_encodings_are_not_mixed(tmp_path: Path):
    """Two of three images have labelIds, and two have labelTrainIds."""
    fill(tmp_path, *(f"leftImg8bit/{n}_leftImg8bit.png" for n in "abc"))
    fill(tmp_path, *(f"gtFine/{n}_gtFine_labelIds.png" for n in "ab"), ids=LABEL_IDS)
    fill(tmp_path, *(f"gtFine/{n}_gtFine_labelTrainIds.png" for n in "bc"), ids=TRAIN_IDS)
    folders = tmp_path / "leftImg8bit", tmp_path / "gtFine"
    matching = match_labels(*folders)
    assert [pair.image_id for pair in matching.pairs] == ["a_leftImg8bit", "b_leftImg8bit"]
    assert {p.label_path.stem[2:] for p in matching.pairs} == {"gtFine_labelIds"}
    assert (matching.images_alone, matching.labels_alone) == (["c_leftImg8bit"], [])
    with pytest.raises(DataError, match=r"'c_leftImg8bit'.*1 images have no labelIds, only label"):
        pair_labels(*folders)


def test_labels_in_another_encoding_than_the_named_one_are_not_used(tmp_path: Path):
    fill(tmp_path, "leftImg8bit/a_leftImg8bit.png")
    fill(tmp_path, "gtFine/a_gtFine_labelTrainIds.png", ids=TRAIN_IDS)
    with pytest.raises(DataError, match="have only labelTrainIds, which is not labels_format city"):
        load(tmp_path, "leftImg8bit", "gtFine", labels_format="cityscapes_label_ids")


def test_splits_without_labels_are_left_out_and_named(tmp_path: Path):
    """ACDC's test split and its reference images have no labels."""
    root = write_case(CASES["ACDC"], tmp_path)
    for split in ("test", "test_ref"):
        for frame in range(2):
            fill(root, f"rgb_anon/fog/{split}/G/G_frame_{frame}_rgb_anon.png")
    line = "2 images of fog/test/ are left out: the labels have no such folder"
    report = check(root)
    assert report.sound
    assert line in report.lines()
    folder = load(root, "rgb_anon", "gt")
    assert len(folder.pairs) == 1
    assert line in folder.describe(CITYSCAPES_19)
    fill(
        root, "rgb_anon/fog/train/GOPR0475/x_rgb_anon.png"
    )  # in a labelled split, so it is missing
    assert check(root).images_without_labels == ["fog/train/GOPR0475/x_rgb_anon"]
    with pytest.raises(DataError, match="images without labels: 'fog/train/GOPR0475/x_rgb_anon'"):
        load(root, "rgb_anon", "gt")


def test_images_of_a_complete_cityscapes_are_counted_once(tmp_path: Path):
    """gtCoarse also labels the images of gtFine, so only its extra split is used."""
    extra = "train_extra/bonn/b"
    fill(tmp_path, f"leftImg8bit/{CITY}_leftImg8bit.png", f"leftImg8bit/{extra}_leftImg8bit.png")
    fill(tmp_path, f"leftImg8bit_foggy/{CITY}_leftImg8bit_foggy_beta_0.01.png")
    labels = (f"gtFine/{CITY}_gtFine", f"gtCoarse/{CITY}_gtCoarse", f"gtCoarse/{extra}_gtCoarse")
    fill(tmp_path, *(f"{label}_labelIds.png" for label in labels), ids=LABEL_IDS)
    report = check(tmp_path)
    assert (report.layout, report.pairs, report.sound) == ("cityscapes", 3, True)
    assert not any("left out" in line for line in report.notes)


def test_an_image_folder_with_label_maps_of_known_data_sets_is_refused(tmp_path: Path):
    for name in ("a_gt_labelTrainIds", "00001_labelTrainIds", "a_gtFine_instanceTrainIds"):
        root = fill(tmp_path / name, "a.png", f"{name}.png")
        with pytest.raises(DataError, match=f"{name}.png' is a label map"):
            list_images(root)


def test_published_labels_of_both_encodings_are_read_like_the_official_scorer(shared_data):
    city = shared_data("cityscapes_sample")
    folder = load(city, "leftImg8bit", "gtFine")
    assert folder.format == "cityscapes_label_ids"
    assert "4 images have labelIds and labelTrainIds" in "\n".join(folder.describe(CITYSCAPES_19))
    train_ids = load(city, "leftImg8bit", "gtFine", labels_format="train_ids")
    for pair, train_id_pair in zip(folder.pairs, train_ids.pairs, strict=True):
        assert 0 < np.mean(pair.labels() != train_id_pair.labels()) < 0.01


def test_an_unknown_layout_is_refused_with_known_layouts_and_entries(tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError) as refused:
        find_layout(tmp_path)
    message = str(refused.value)
    assert "synthia: RGB/ + GT/LABELS/" in message
    assert "Found: notes.txt, pictures/." in message
    assert "--labels DIR" in message
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nothing, the folder is empty"):
        find_layout(tmp_path / "empty")


def test_two_named_folders_are_used_without_a_search(tmp_path: Path):
    for name in ("leftImg8bit", "gtFine"):
        (tmp_path / name).mkdir()
    layout = find_layout(tmp_path / "leftImg8bit", tmp_path / "gtFine")
    assert layout.folders == ((tmp_path / "leftImg8bit", tmp_path / "gtFine"),)
    assert layout.name_with("cityscapes_label_ids") == "plain folder"
    assert layout.name_with("camvid_colours") == "camvid"
    assert layout.name_with("mapillary") == "mapillary"
    assert find_layout(tmp_path).name == "cityscapes"
