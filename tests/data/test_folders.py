"""Listing of image folders, reading of label maps, and the held-out split."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import encode, label_map, put, put_all
from PIL import Image

from sfss_ray.data.class_sets import IGNORE_INDEX
from sfss_ray.data.decoding import read_image
from sfss_ray.data.folders import (
    ImageFile,
    evenly_spread,
    list_images,
    read_labels,
    split_held_out,
)
from sfss_ray.errors import DataError


def ids_in(folder: Path) -> list[str]:
    """Return the ids of the images in a folder."""
    return [file.image_id for file in list_images(folder)]


def data_error(function, *arguments) -> str:
    """Return the message of the DataError, which must be one line."""
    with pytest.raises(DataError) as refused:
        function(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_images_of_all_subfolders_are_listed_sorted_by_id(tmp_path: Path):
    put_all(tmp_path, "b/c/2.JPG", "b/1.png", "z.webp", "a.tiff")
    (tmp_path / "notes.txt").write_text("no image")
    assert ids_in(tmp_path) == ["a", "b/1", "b/c/2", "z"]
    assert list_images(tmp_path)[2] == ImageFile("b/c/2", tmp_path / "b/c/2.JPG")


def test_only_the_last_suffix_is_removed_from_the_id(tmp_path: Path):
    put_all(tmp_path, "a.b.png", "a.png")
    assert ids_in(tmp_path) == ["a", "a.b"]


def test_hidden_files_and_folders_are_skipped(tmp_path: Path):
    put_all(tmp_path, "a.png", ".b.png", ".thumbnails/c.png", "d/._e.png")
    assert ids_in(tmp_path) == ["a"]


def test_a_link_to_a_parent_is_not_followed(tmp_path: Path):
    put_all(tmp_path, "a.png", "deep/b.png")
    (tmp_path / "deep" / "back").symlink_to(tmp_path, target_is_directory=True)
    assert ids_in(tmp_path) == ["a", "deep/b"]


def test_folders_that_link_to_each_other_are_listed_once_more(tmp_path: Path):
    put_all(tmp_path / "images", "a.png", "one/b.png", "two/c.png")
    (tmp_path / "images" / "one" / "to").symlink_to(tmp_path / "images" / "two")
    (tmp_path / "images" / "two" / "to").symlink_to(tmp_path / "images" / "one")
    assert ids_in(tmp_path / "images") == ["a", "one/b", "one/to/c", "two/c", "two/to/b"]


def test_links_to_folders_elsewhere_are_followed(tmp_path: Path):
    """Data sets are often assembled from links to other disks."""
    put_all(tmp_path / "disk", "deep/a.png", "b.png")
    put_all(tmp_path / "images", "c.png")
    (tmp_path / "images" / "drive").symlink_to(tmp_path / "disk", target_is_directory=True)
    (tmp_path / "images" / "gone").symlink_to(tmp_path / "nowhere", target_is_directory=True)
    assert ids_in(tmp_path / "images") == ["c", "drive/b", "drive/deep/a"]


def test_the_folder_itself_may_be_a_link(tmp_path: Path):
    put_all(tmp_path / "disk", "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "disk", target_is_directory=True)
    assert ids_in(tmp_path / "link") == ["a"]


def test_names_may_contain_spaces_quotes_and_unicode(tmp_path: Path):
    put_all(tmp_path, "Straße 1/früh morgens.png", "日本 (2).jpg", "a'b\"c.png")
    assert set(ids_in(tmp_path)) == {"Straße 1/früh morgens", "日本 (2)", "a'b\"c"}
    assert all(read_image(file.path).shape == (6, 9, 3) for file in list_images(tmp_path))


def test_two_images_with_the_same_id_are_refused(tmp_path: Path):
    put_all(tmp_path, "x/a.jpg", "x/a.png")
    message = data_error(list_images, tmp_path)
    assert "'a.jpg'" in message
    assert "'a.png'" in message
    assert "keep one" in message


def test_a_missing_folder_is_named(tmp_path: Path):
    message = data_error(list_images, tmp_path / "nowhere", "val images")
    assert message.startswith("val images: ")
    assert str(tmp_path / "nowhere") in message
    assert "does not exist; give" in message


def test_a_file_is_refused_as_a_folder(tmp_path: Path):
    assert "is a file; give the folder" in data_error(list_images, put(tmp_path / "a.png"))


def test_an_empty_folder_is_named_with_the_expected_suffixes(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no image")
    message = data_error(list_images, tmp_path)
    assert str(tmp_path) in message
    assert ".png, .jpg" in message


def image_files(names) -> list[ImageFile]:
    """Return records of images with these names, sorted."""
    return [ImageFile(name, Path(f"{name}.png")) for name in sorted(names)]


NAMES = st.sets(st.text("abcdefgh", min_size=1, max_size=6), min_size=1, max_size=40)


@given(NAMES, st.floats(0.01, 0.5), st.integers(1, 10))
def test_every_image_is_in_exactly_one_part_of_the_split(names, share, max_held_out):
    training, held_out = split_held_out(image_files(names), share, max_held_out)
    assert sorted(training + held_out) == image_files(names)
    assert training == sorted(training)
    count = min(max_held_out, round(share * len(names)))
    assert len(held_out) == (max(count, 1) if len(names) > 1 else count)


@given(NAMES, st.sampled_from("ijkl"))
def test_adding_an_image_moves_at_most_one_other_image(names, extra):
    before = split_held_out(image_files(names), 0.2, 64)[1]
    after = split_held_out(image_files(names | {extra}), 0.2, 64)[1]
    moved = {f.image_id for f in before} ^ {f.image_id for f in after}
    assert len(moved - {extra}) <= 1


def test_the_split_depends_only_on_the_ids():
    names = [f"{i:03}" for i in range(50)]
    moved = [ImageFile(n, Path("/elsewhere") / n) for n in reversed(names)]
    held_out = [f.image_id for f in split_held_out(image_files(names), 0.2, 64)[1]]
    assert held_out == [f.image_id for f in split_held_out(moved, 0.2, 64)[1]]
    assert held_out != names[:10]


def test_nothing_is_held_out_for_a_share_or_bound_of_zero_or_a_single_image():
    assert split_held_out(image_files("ab"), 0.0, 64)[1] == []
    assert split_held_out(image_files("ab"), 0.5, 0)[1] == []
    assert split_held_out(image_files("a"), 0.5, 64)[1] == []


def test_label_ids_are_the_pixel_values(tmp_path: Path):
    ids = label_map([0, 18, 255], [1, 2, 3])
    labels = read_labels(put(tmp_path / "a.png", ids))
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, ids)


def test_palette_labels_are_read_as_indices(tmp_path: Path):
    ids = label_map([0, 1, 2], [18, 255, 7])
    picture = Image.fromarray(ids)
    picture.putpalette([(37 * i) % 256 for i in range(768)])
    assert picture.mode == "P"
    assert np.array_equal(read_labels(put(tmp_path / "a.png", encode(picture))), ids)


def test_16_bit_labels_are_read_if_their_ids_fit(tmp_path: Path):
    ids = np.array([[0, 255], [3, 4]], np.uint16)
    assert np.array_equal(read_labels(put(tmp_path / "a.png", ids)), ids)
    with pytest.raises(DataError, match="id 256 found; allowed are 0 to 255"):
        read_labels(put(tmp_path / "b.png", ids + np.uint16(1)))


def test_colour_images_are_refused_as_labels(tmp_path: Path):
    with pytest.raises(DataError, match=r"a\.png': 3 channels; give one channel"):
        read_labels(put(tmp_path / "a.png"))


def test_cityscapes_label_ids_become_train_ids(tmp_path: Path):
    ids = label_map([7, 8, 33, 0], [26, 3, 29, 255])  # road, sidewalk, bicycle, void; car, void
    labels = read_labels(put(tmp_path / "x_gtFine_labelIds.png", ids))
    assert labels.tolist() == [[0, 1, 18, 255], [13, 255, 255, 255]]
    assert np.array_equal(read_labels(put(tmp_path / "x_gtFine_labelTrainIds.png", ids)), ids)


@pytest.mark.parametrize(("total", "count"), [(10, 3), (7, 7), (5, 9), (100, 1)])
def test_evenly_spread_images_are_distinct_and_cover_the_list(total, count):
    images = image_files([f"{i:03}" for i in range(total)])
    chosen = evenly_spread(images, count)
    positions = [images.index(image) for image in chosen]
    assert len(positions) == min(count, total)
    assert positions == sorted(set(positions))
    edges = [0, *positions, total - 1]
    assert max(b - a for a, b in pairwise(edges)) <= -(-total // len(positions))


def test_cityscapes_encodings_agree_except_at_boundaries(shared_data):
    folder = shared_data("cityscapes_sample") / "gtFine" / "train" / "aachen"
    train_ids = read_labels(folder / "aachen_000000_000019_gtFine_labelTrainIds.png")
    mapped = read_labels(folder / "aachen_000000_000019_gtFine_labelIds.png")
    assert 0 < np.mean(train_ids != mapped) < 0.01
    assert set(np.unique(mapped)) <= {*range(19), IGNORE_INDEX}


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_broken_links_are_listed_and_named_on_reading(tmp_path: Path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    (file,) = list_images(tmp_path)
    assert "a.png" in data_error(read_image, file.path)


def test_listed_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(tmp_path / "images" / "a.png")
    monkeypatch.chdir(tmp_path)
    (image,) = list_images("images")
    monkeypatch.chdir("/")
    assert image.path.is_file()
    assert image.image_id == "a"


@pytest.mark.parametrize("ending", ["gtFine_color", "gtFine_labelIds", "gtCoarse_instanceIds"])
def test_cityscapes_label_maps_are_refused_as_images(tmp_path: Path, ending):
    """The root folder of Cityscapes contains both."""
    for folder, name in (("leftImg8bit", "a_leftImg8bit.png"), ("gtFine", f"a_{ending}.png")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    with pytest.raises(DataError, match=rf"a_{ending}.png' is a label map.*leftImg8bit"):
        list_images(tmp_path)
    assert len(list_images(tmp_path / "leftImg8bit")) == 1


def test_a_folder_without_read_permission_is_named(tmp_path: Path, monkeypatch):
    """Root may list every folder, so a patched scandir denies one."""
    for city in ("aachen", "bonn"):
        (tmp_path / city).mkdir()
        (tmp_path / city / "a.png").touch()
    scandir = os.scandir

    def denying_scandir(path="."):
        if Path(path).name == "bonn":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denying_scandir)
    with pytest.raises(DataError, match=r"folder '.*bonn' cannot be listed \(Permission denied\)"):
        list_images(tmp_path)


@pytest.mark.slow
def test_100_000_images_are_listed_in_order(tmp_path: Path):
    for city in range(10):
        (tmp_path / f"city {city}").mkdir()
        for frame in range(10_000):
            (tmp_path / f"city {city}" / f"{frame:05d}.png").touch()
    images = list_images(tmp_path)
    assert len(images) == 100_000
    assert [i.image_id for i in images] == sorted(i.image_id for i in images)
    assert images[12_345].image_id == "city 1/02345"
    assert images[12_345].path == tmp_path / "city 1" / "02345.png"
