"""Selection of image files by suffix, and counting of the files that are skipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_files import ids_of, plain
from image_files import encode, noise, put
from PIL import Image, features

from sfss_ray.data import suffixes
from sfss_ray.data.class_sets import class_set_of
from sfss_ray.data.decoding import image_size, read_image
from sfss_ray.data.folders import list_images
from sfss_ray.data.labelled import load_labelled
from sfss_ray.errors import DataError
from sfss_ray.inspection.data_set import check_dataset


def list_with_notes(folder: Path) -> tuple[list[str], list[str]]:
    """Return the ids of the images and the notes on skipped files."""
    notes: list[str] = []
    return [file.image_id for file in list_images(folder, notes=notes.append)], notes


STILL = {
    "a.jfif": ("JPEG", {"quality": 100}, None),
    "a.jpe": ("JPEG", {"quality": 100}, None),
    "a.pgm": ("PPM", {}, None),
    "a.pnm": ("PPM", {}, None),
    "a.gif": ("GIF", {}, None),
    "a.jp2": ("JPEG2000", {}, "jpg_2000"),
    "a.avif": ("AVIF", {"quality": 100}, "avif"),
}


@pytest.mark.parametrize("name", STILL)
def test_images_with_optional_suffixes_are_read(name, tmp_path: Path):
    file_format, options, decoder = STILL[name]
    if decoder and not features.check(decoder):
        pytest.skip(f"this Pillow does not decode {file_format}")
    grey = np.arange(54, dtype=np.uint8).reshape(6, 9) * 4
    path = put(tmp_path / name.upper(), encode(grey, file_format, **options))
    assert list_with_notes(tmp_path) == (["A"], [])
    pixels = read_image(path).astype(int)
    assert image_size(path) == pixels.shape[:2] == (6, 9)
    assert np.abs(pixels - grey[..., None]).max() <= 6


def test_skipped_files_are_counted_in_one_line(tmp_path: Path):
    for name in ("1.heic", "2.HEIC", "deep/3.svg", "4.mp4", "noise"):
        put(tmp_path / name, b"\0")
    for name in ("classes.txt", "list.csv", "notes.md", "a.json", ".hidden.svg", "Thumbs.db"):
        put(tmp_path / name, b"\0")
    put(tmp_path / "a.png")
    line = "5 files left out by suffix: 2 .heic, 1 .mp4, 1 .svg, 1 without suffix"
    assert list_with_notes(tmp_path) == (["a"], [f"target images: {line}"])
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"no image in .*2 \.heic, 1 \.mp4"):
        list_images(tmp_path)


def test_animated_gifs_are_skipped(tmp_path: Path):
    frames = [Image.fromarray(noise() // (i + 1)) for i in range(3)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    put(tmp_path / "a.gif", data)
    put(tmp_path / "b.gif", encode(frames[0], "GIF"))
    ids, notes = list_with_notes(tmp_path)
    assert ids == ["b"]
    assert notes == ["target images: 1 file left out by suffix: 1 .gif (animated)"]


def test_a_preview_with_an_optional_suffix_is_skipped_beside_its_image(tmp_path: Path):
    """Folders with a.png and a.gif existed before .gif was supported: a.png is the image."""
    for name in ("a.gif", "a.png", "b.jpg", "b.pgm"):
        put(tmp_path / name, encode(noise()[..., 0], "GIF" if name == "a.gif" else "PNG"))
    files = list_images(tmp_path)
    assert [file.path.name for file in files] == ["a.png", "b.jpg"]
    assert "2 files left out by suffix: 1 .gif, 1 .pgm" in list_with_notes(tmp_path)[1][0]


def test_formats_without_a_decoder_are_skipped(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(features, "get_supported_modules", list)
    monkeypatch.setattr(features, "get_supported_codecs", list)
    suffixes.image_suffixes.cache_clear()
    try:
        assert not {".jp2", ".avif"} & set(suffixes.image_suffixes())
        assert {".png", ".jfif", ".pgm"} <= set(suffixes.image_suffixes())
        put(tmp_path / "a.avif", b"\0")
        put(tmp_path / "b.png")
        assert list_with_notes(tmp_path) == (
            ["b"],
            ["target images: 1 file left out by suffix: 1 .avif"],
        )
    finally:
        suffixes.image_suffixes.cache_clear()


def test_a_suffix_registered_by_another_package_is_accepted(monkeypatch):
    """pillow_heif registers .heic like this."""
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    monkeypatch.setitem(Image.OPEN, "HEIF", (lambda: None, None))
    suffixes.image_suffixes.cache_clear()
    try:
        assert ".heic" in suffixes.image_suffixes()
    finally:
        suffixes.image_suffixes.cache_clear()


def test_data_check_and_load_labelled_report_skipped_files(tmp_path: Path):
    root = plain(tmp_path, ids_of(0, 1), classes="a\nb\n")
    put(root / "images" / "9.heic", b"\0")
    put(root / "labels" / "9.npy", b"\0")
    expected = [
        "data set images: 1 file left out by suffix: 1 .heic",
        "data set labels: 1 file left out by suffix: 1 .npy",
    ]
    report = check_dataset(root, progress=str)
    assert report.notes == expected
    assert set(expected) <= set(report.lines())
    classes = class_set_of(["a", "b"])
    folder = load_labelled(root / "images", root / "labels", classes)
    assert "val images: 1 file left out by suffix: 1 .heic" in folder.describe(classes)
