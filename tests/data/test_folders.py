"""Listing folders, pairing images with labels, and the held-out split."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import label_map, put, put_all

from sfss_ray.data.class_sets import CAMVID_11, IGNORE_INDEX
from sfss_ray.data.decoding import image_size, read_image
from sfss_ray.data.folders import (
    ImageFile,
    check_label_ids,
    list_images,
    pair_labels,
    read_labels,
    split_held_out,
)
from sfss_ray.errors import DataError


def ids_in(folder: Path) -> list[str]:
    return [file.image_id for file in list_images(folder)]


def refusal(work, *arguments) -> str:
    """The message of the DataError, which must be one line."""
    with pytest.raises(DataError) as refused:
        work(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_images_are_found_at_every_depth_sorted_by_id(tmp_path: Path):
    put_all(tmp_path, "b/c/2.JPG", "b/1.png", "z.webp", "a.tiff")
    (tmp_path / "notes.txt").write_text("no image")
    assert ids_in(tmp_path) == ["a", "b/1", "b/c/2", "z"]
    assert list_images(tmp_path)[2] == ImageFile("b/c/2", tmp_path / "b/c/2.JPG")


def test_only_the_last_suffix_is_left_out_of_the_id(tmp_path: Path):
    put_all(tmp_path, "a.b.png", "a.png")
    assert ids_in(tmp_path) == ["a", "a.b"]


def test_hidden_files_and_folders_are_skipped(tmp_path: Path):
    put_all(tmp_path, "a.png", ".b.png", ".thumbnails/c.png", "d/._e.png")
    assert ids_in(tmp_path) == ["a"]


def test_a_loop_of_links_ends(tmp_path: Path):
    put_all(tmp_path, "a.png", "deep/b.png")
    (tmp_path / "deep" / "back").symlink_to(tmp_path, target_is_directory=True)
    assert ids_in(tmp_path) == ["a", "deep/b"]


def test_folders_that_link_to_each_other_end(tmp_path: Path):
    put_all(tmp_path / "images", "a.png", "one/b.png", "two/c.png")
    (tmp_path / "images" / "one" / "to").symlink_to(tmp_path / "images" / "two")
    (tmp_path / "images" / "two" / "to").symlink_to(tmp_path / "images" / "one")
    assert ids_in(tmp_path / "images") == ["a", "one/b", "one/to/c", "two/c", "two/to/b"]


def test_links_to_folders_elsewhere_are_followed(tmp_path: Path):
    """Data sets are often put together of links to where they lie."""
    put_all(tmp_path / "disk", "deep/a.png", "b.png")
    put_all(tmp_path / "images", "c.png")
    (tmp_path / "images" / "drive").symlink_to(tmp_path / "disk", target_is_directory=True)
    (tmp_path / "images" / "gone").symlink_to(tmp_path / "nowhere", target_is_directory=True)
    assert ids_in(tmp_path / "images") == ["c", "drive/b", "drive/deep/a"]


def test_the_folder_itself_may_be_a_link(tmp_path: Path):
    put_all(tmp_path / "there", "a.png")
    (tmp_path / "here").symlink_to(tmp_path / "there", target_is_directory=True)
    assert ids_in(tmp_path / "here") == ["a"]


def test_any_name_will_do(tmp_path: Path):
    put_all(tmp_path, "Straße 1/früh morgens.png", "日本 (2).jpg", "a'b\"c.png")
    assert set(ids_in(tmp_path)) == {"Straße 1/früh morgens", "日本 (2)", "a'b\"c"}
    assert all(read_image(file.path).shape == (6, 9, 3) for file in list_images(tmp_path))


def test_two_images_of_one_id_are_refused(tmp_path: Path):
    put_all(tmp_path, "x/a.jpg", "x/a.png")
    message = refusal(list_images, tmp_path)
    assert "'a.jpg'" in message
    assert "'a.png'" in message
    assert "keep one" in message


def test_a_missing_folder_is_named(tmp_path: Path):
    message = refusal(list_images, tmp_path / "nowhere", "val images")
    assert message.startswith("val images: ")
    assert str(tmp_path / "nowhere") in message
    assert "does not exist; give" in message


def test_a_file_is_no_folder(tmp_path: Path):
    assert "is a file; give the folder" in refusal(list_images, put(tmp_path / "a.png"))


def test_a_folder_without_images_is_named_with_the_suffixes(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no image")
    message = refusal(list_images, tmp_path)
    assert str(tmp_path) in message
    assert ".png, .jpg" in message


def both(tmp_path: Path, images: tuple[str, ...], labels: tuple[str, ...]) -> tuple[Path, Path]:
    put_all(tmp_path / "images", *images)
    for name in labels:
        put(tmp_path / "labels" / name, label_map([0, 1]))
    return tmp_path / "images", tmp_path / "labels"


def test_pairs_share_their_id_whatever_the_suffix(tmp_path: Path):
    folders = both(tmp_path, ("a.jpg", "x/b.png"), ("a.png", "x/b.png"))
    pairs = pair_labels(*folders)
    assert [p.image_id for p in pairs] == ["a", "x/b"]
    assert [p.label_path for p in pairs] == [folders[1] / "a.png", folders[1] / "x/b.png"]


@pytest.mark.parametrize("ending", ["labelTrainIds", "labelIds"])
def test_cityscapes_names_are_paired(ending, tmp_path: Path):
    folders = both(
        tmp_path,
        ("aachen/1_leftImg8bit.png",),
        (f"aachen/1_gtFine_{ending}.png", "aachen/1_gtFine_color.png"),
    )
    (pair,) = pair_labels(*folders)
    assert pair.label_path.name == f"1_gtFine_{ending}.png"


def test_label_ids_are_taken_where_cityscapes_has_both(tmp_path: Path):
    """As cityscapesScripts' evaluation does."""
    labels = ("1_gtFine_labelIds.png", "1_gtFine_labelTrainIds.png", "1_gtFine_instanceIds.png")
    folders = both(tmp_path, ("1_leftImg8bit.png",), labels)
    (pair,) = pair_labels(*folders)
    assert pair.label_path.name == "1_gtFine_labelIds.png"
    (pair,) = pair_labels(*folders, format_name="train_ids")
    assert pair.label_path.name == "1_gtFine_labelTrainIds.png"


def test_images_without_labels_are_named(tmp_path: Path):
    folders = both(tmp_path, ("a.png", "b.png", "c.png", "d.png", "e.png"), ("a.png",))
    message = refusal(pair_labels, *folders)
    assert "val images without labels: 'b', 'c', 'd' and 1 more" in message
    assert str(folders[1]) in message


def test_labels_without_images_are_named(tmp_path: Path):
    message = refusal(pair_labels, *both(tmp_path, ("a.png",), ("a.png", "b.png")))
    assert "val labels without images: 'b';" in message


def test_a_cityscapes_label_without_image_is_named(tmp_path: Path):
    labels = ("1_gtFine_labelIds.png", "2_gtFine_labelIds.png")
    message = refusal(pair_labels, *both(tmp_path, ("1_leftImg8bit.png",), labels))
    assert "'2_gtFine_labelIds'" in message
    assert "'1_gtFine_labelIds'" not in message


def test_two_labels_of_one_id_are_refused(tmp_path: Path):
    message = refusal(pair_labels, *both(tmp_path, ("a.png",), ("a.png", "a.tif")))
    assert message.startswith("val labels: ")
    assert "'a.tif'" in message


def test_a_folder_without_labels_is_named(tmp_path: Path):
    images, _ = both(tmp_path, ("a.png",), ())
    (tmp_path / "empty").mkdir()
    assert "no label map" in refusal(pair_labels, images, tmp_path / "empty")
    assert "does not exist" in refusal(pair_labels, images, tmp_path / "nowhere")


def files(names) -> list[ImageFile]:
    return [ImageFile(name, Path(f"{name}.png")) for name in sorted(names)]


NAMES = st.sets(st.text("abcdefgh", min_size=1, max_size=6), min_size=1, max_size=40)


@given(NAMES, st.floats(0.01, 0.5), st.integers(1, 10))
def test_the_split_shares_out_every_image_once(names, share, most):
    training, held_out = split_held_out(files(names), share, most)
    assert sorted(training + held_out) == files(names)
    assert training == sorted(training)
    fair = min(most, round(share * len(names)))
    assert len(held_out) == (max(fair, 1) if len(names) > 1 else fair)


@given(NAMES, st.sampled_from("ijkl"))
def test_one_more_image_moves_at_most_one_other(names, extra):
    before = split_held_out(files(names), 0.2, 64)[1]
    after = split_held_out(files(names | {extra}), 0.2, 64)[1]
    moved = {f.image_id for f in before} ^ {f.image_id for f in after}
    assert len(moved - {extra}) <= 1


def test_the_split_asks_the_name_alone():
    names = [f"{i:03}" for i in range(50)]
    elsewhere = [ImageFile(n, Path("/elsewhere") / n) for n in reversed(names)]
    here = [f.image_id for f in split_held_out(files(names), 0.2, 64)[1]]
    assert here == [f.image_id for f in split_held_out(elsewhere, 0.2, 64)[1]]
    assert here != names[:10]


def test_nothing_is_held_out_when_that_is_asked():
    assert split_held_out(files("ab"), 0.0, 64)[1] == []
    assert split_held_out(files("ab"), 0.5, 0)[1] == []
    assert split_held_out(files("a"), 0.5, 64)[1] == []


def test_camvid_is_read_as_it_lies(shared_data):
    camvid = shared_data("camvid")
    pairs = pair_labels(camvid / "images" / "train", camvid / "labels" / "train")
    dusk = [p for p in pairs if p.image_id.startswith("0001TP")]
    assert (len(pairs), len(dusk)) == (367, 62)
    image, labels = read_image(dusk[0].path), read_labels(dusk[0].label_path)
    assert image.shape[:2] == labels.shape == image_size(dusk[0].path) == (360, 480)
    assert "hold id 11" in refusal(check_label_ids, dusk, CAMVID_11)  # void is no class


def test_cityscapes_is_read_as_it_lies(shared_data):
    city = shared_data("cityscapes_sample")
    pairs = pair_labels(city / "leftImg8bit", city / "gtFine")
    assert len(pairs) == 4
    assert all(p.image_id.startswith("train/aachen/") for p in pairs)
    assert all(p.label_path.name.endswith("_labelIds.png") for p in pairs)
    assert image_size(pairs[0].path) == (1024, 2048)


def test_cityscapes_encodings_agree_but_at_boundaries(shared_data):
    folder = shared_data("cityscapes_sample") / "gtFine" / "train" / "aachen"
    train_ids = read_labels(folder / "aachen_000000_000019_gtFine_labelTrainIds.png")
    mapped = read_labels(folder / "aachen_000000_000019_gtFine_labelIds.png")
    assert 0 < np.mean(train_ids != mapped) < 0.01
    assert set(np.unique(mapped)) <= {*range(19), IGNORE_INDEX}


@pytest.mark.skipif(os.name != "posix", reason="file names of bytes")
def test_broken_links_are_listed_and_named_when_read(tmp_path: Path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    (file,) = list_images(tmp_path)
    assert "a.png" in refusal(read_image, file.path)


def test_listed_paths_do_not_depend_on_the_folder_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put(tmp_path / "images" / "a.png")
    monkeypatch.chdir(tmp_path)
    (listed,) = list_images("images")
    monkeypatch.chdir("/")
    assert listed.path.is_file()
    assert listed.image_id == "a"


@pytest.mark.parametrize("ending", ["gtFine_color", "gtFine_labelIds", "gtCoarse_instanceIds"])
def test_cityscapes_labels_are_no_images(tmp_path: Path, ending):
    """Its root folder holds both."""
    for folder, name in (("leftImg8bit", "a_leftImg8bit.png"), ("gtFine", f"a_{ending}.png")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    with pytest.raises(DataError, match=rf"a_{ending}.png' is a label map.*leftImg8bit"):
        list_images(tmp_path)
    assert len(list_images(tmp_path / "leftImg8bit")) == 1


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path, monkeypatch):
    """The superuser may list all: a folder that refuses stands in."""
    for city in ("aachen", "bonn"):
        (tmp_path / city).mkdir()
        (tmp_path / city / "a.png").touch()
    scan = os.scandir

    def refusing(path="."):
        if Path(path).name == "bonn":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"folder '.*bonn' cannot be listed \(Permission denied\)"):
        list_images(tmp_path)


@pytest.mark.slow
def test_a_hundred_thousand_names_are_listed_in_order(tmp_path: Path):
    for city in range(10):
        (tmp_path / f"city {city}").mkdir()
        for frame in range(10_000):
            (tmp_path / f"city {city}" / f"{frame:05d}.png").touch()
    images = list_images(tmp_path)
    assert len(images) == 100_000
    assert [i.image_id for i in images] == sorted(i.image_id for i in images)
    assert images[12_345].image_id == "city 1/02345"
    assert images[12_345].path == tmp_path / "city 1" / "02345.png"
