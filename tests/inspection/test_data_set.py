"""`data check`: the layout, class shares and every fault of a data set."""

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
from image_files import encode, noise, put

from sfss_ray import cli
from sfss_ray.config import Config, override
from sfss_ray.errors import DataError
from sfss_ray.inspection.data_set import DatasetReport, check_dataset


def check(root: Path, config: dict | None = None, **options) -> DatasetReport:
    return check_dataset(root, config=override(Config(), config or {}), progress=str, **options)


def test_gta5_is_recognised_and_its_pixels_are_counted_by_class(tmp_path: Path):
    report = check(gta5(tmp_path, ids_of(ROAD, ROAD, CAR), ids_of(ROAD, 0, 0)))
    assert (report.layout, report.labels_format, report.pairs) == ("gta5", "gta5", 2)
    assert report.sound
    assert report.class_share["road"] == pytest.approx(100 * 9 / 12)
    assert report.class_share["car"] == pytest.approx(25)
    assert report.class_share["sky"] == 0
    assert report.ignored_share == pytest.approx(100 * 6 / 18)
    assert report.image_sizes == {"9x6": 2}


@pytest.mark.parametrize(
    ("make", "layout", "classes"),
    [
        (lambda root: synthia(root, ids_of(1, 2)), "synthia", "synthia-16"),
        (lambda root: camvid(root, ids_of(1, 11)), "camvid", "camvid-11"),
        (lambda root: cityscapes(root, ids_of(ROAD)), "cityscapes", "cityscapes-19"),
        (lambda root: plain(root, ids_of(0), classes="a\nb\n"), "plain folder", "custom"),
    ],
)
def test_layouts_are_recognised(make, layout, classes, tmp_path: Path):
    report = check(make(tmp_path))
    assert (report.layout, report.class_set, report.sound) == (layout, classes, True)


def test_segnets_camvid_has_a_folder_per_split(tmp_path: Path):
    for split, count in (("train", 2), ("val", 1)):
        for number in range(count):
            put(tmp_path / split / f"0016E5_{number}.png")
            put(tmp_path / f"{split}annot" / f"0016E5_{number}.png", ids_of(3))
    report = check(tmp_path)
    assert (report.layout, report.pairs) == ("camvid (SegNet)", 3)
    assert report.labels_format == "camvid"


def test_the_encoding_of_cityscapes_labels_is_named(tmp_path: Path):
    root = cityscapes(tmp_path, ids_of(ROAD), ids_of(13))
    report = check(root)
    assert report.class_share["road"] == 100
    assert "1 images have labelIds and labelTrainIds: the labelIds are used" in str(report.notes)
    assert "cityscapes_label_ids" in "\n".join(report.lines())
    report = check(root, {"labels_format": "train_ids"})
    assert (report.class_share["car"], report.notes) == (100, [])


def test_every_fault_is_listed_and_none_is_fatal(tmp_path: Path):
    root = gta5(tmp_path, *[ids_of(ROAD, BUILDING) for _ in range(6)])
    (root / "labels" / "00001.png").unlink()
    (root / "images" / "00002.png").unlink()
    put_palette(root / "labels" / "00003.png", ids_of(ROAD, size=(6, 7)))
    put_palette(root / "labels" / "00004.png", ids_of(ROAD, 40))
    put(root / "images" / "00005.png", b"a letter")
    report = check(root)
    assert report.images_without_labels == ["00001"]
    assert report.labels_without_images == ["00002"]
    assert report.unequal == ["00003: image 9x6, labels 7x6"]
    assert report.unknown_ids == {40: int((ids_of(ROAD, 40) == 40).sum())}
    assert report.files_of_unknown_id[40].endswith("00004.png")
    assert len(report.unreadable) == 1
    assert "00005.png" in report.unreadable[0]
    assert not report.sound
    assert cli.main(["data", "check", str(root)]) == 1
    page = "\n".join(report.lines())
    for line in (
        "images without labels: 1",
        "id 40: 24 pixels",
        "unreadable files: 1",
        "not sound",
    ):
        assert line in page


def test_a_truncated_image_is_noticed_unless_only_headers_are_read(tmp_path: Path):
    root = plain(tmp_path, ids_of(0, size=(64, 64)), classes="a\n")
    whole = encode(noise(64, 64))
    put(root / "images" / "0.png", whole[: len(whole) // 2])
    assert len(check(root).unreadable) == 1
    assert check(root, headers_only=True).sound


def test_images_and_labels_may_be_two_folders(tmp_path: Path):
    put(tmp_path / "a" / "x.png")
    put(tmp_path / "b" / "x.png", ids_of(0, 1))
    report = check(tmp_path / "a", labels=tmp_path / "b", classes="car,road")
    assert report.class_share == pytest.approx({"car": 500 / 9, "road": 400 / 9})
    unnamed = check(tmp_path / "a", labels=tmp_path / "b")
    assert set(unnamed.class_share) == {"class 0", "class 1"}


def test_the_error_for_an_unknown_layout_has_the_expected_ones(tmp_path: Path):
    put(tmp_path / "pictures" / "a.png")
    with pytest.raises(DataError) as refused:
        check(tmp_path)
    message = str(refused.value)
    assert "leftImg8bit/ + gtFine/" in message
    assert "RGB/ + GT/LABELS/" in message
    assert "Found: pictures/" in message
    assert "\n" not in message


def test_the_error_for_unmatched_names_has_examples(tmp_path: Path):
    put(tmp_path / "images" / "a.png")
    put(tmp_path / "labels" / "b.png", ids_of(0))
    with pytest.raises(DataError, match="images such as 'a', labels such as 'b'"):
        check(tmp_path)


def test_the_command_is_two_words_and_a_folder(tmp_path: Path, capsys):
    assert cli.split_verb(["data", "check", "x"]) == ("data check", ["x"])
    assert cli.split_verb(["masks", "x"]) == ("masks x", []), "a misspelt verb, named whole"
    assert cli.split_verb(["masks", "--help"]) == ("masks", ["--help"])
    root = gta5(tmp_path, ids_of(ROAD))
    assert cli.main(["data", "check", str(root)]) == 0
    page = capsys.readouterr().out
    assert f"{root}: gta5" in page
    assert "sound" in page.splitlines()


def test_shares_are_those_of_plain_counts(tmp_path: Path):
    rng = np.random.default_rng(0)
    maps = [rng.integers(0, 12, (6, 9)).astype(np.uint8) for _ in range(3)]
    report = check(camvid(tmp_path, *maps))
    pixels = np.stack(maps)
    for index, share in enumerate(report.class_share.values()):
        assert share == pytest.approx(100 * (pixels == index).sum() / (pixels < 11).sum())
