"""File names as printable text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sfss_ray.data.file_names import printable
from sfss_ray.data.folders import list_images


@pytest.mark.parametrize("name", ["a.png", "Straße 1/früh.png", "日本 (2).jpg", "", "a\\x80"])
def test_valid_names_are_unchanged(name):
    assert printable(name) == name
    assert printable(Path(name)) == str(Path(name))


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes only on POSIX")
def test_bytes_that_are_not_utf_8_are_escaped(tmp_path: Path):
    name = b"stra\xdfe \xe4.png"  # Latin-1
    assert printable(os.fsdecode(name)) == r"stra\xdfe \xe4.png"
    try:
        (tmp_path / os.fsdecode(name)).touch()
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")
    (image,) = list_images(tmp_path)
    assert image.image_id == r"stra\xdfe \xe4"
    assert image.image_id.encode()
    assert image.path.exists()
