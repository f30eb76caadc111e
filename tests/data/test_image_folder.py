"""Opening of image folders: images, notes, and the white level."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from image_files import put

from sfss_ray.config import Config, override
from sfss_ray.data.depth import White
from sfss_ray.data.image_folder import first_readable, open_images
from sfss_ray.errors import DataError


def test_notes_name_skipped_files_before_the_white_level(tmp_path: Path):
    assert cv2.imwrite(str(tmp_path / "deep.png"), np.array([[0, 65535]], np.uint16))
    put(tmp_path / "b" / "plain.png")
    put(tmp_path / "movie.mp4", b"\0")
    images, notes = open_images(tmp_path, Config())
    assert [image.image_id for image in images] == ["b/plain", "deep"]
    assert [image.white for image in images] == [White(65535.0)] * 2
    assert notes == [
        "target images: 1 file left out by suffix: 1 .mp4",
        "images of more than 8 bits: white is 65535 (values up to 65535 were found)",
    ]


def test_a_white_level_in_the_config_overrides_that_of_the_model(tmp_path: Path):
    assert cv2.imwrite(str(tmp_path / "deep.png"), np.array([[0, 500]], np.uint16))
    config = override(Config(), {"white_level": 1000.0})
    (image,), _ = open_images(tmp_path, config, model_white=4095.0)
    assert image.white == White(1000.0, was_set=True)
    (image,), _ = open_images(tmp_path, Config(), model_white=4095.0)
    assert image.white == White(4095.0)


def test_the_first_readable_image_is_found(tmp_path: Path):
    put(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    put(tmp_path / "b.png")
    images, _ = open_images(tmp_path, Config())
    assert first_readable(images, None).image_id == "b"
    with pytest.raises(DataError, match=r"none of the 1 images can be read: image '.*a.png': "):
        first_readable(images[:1], None)
    with pytest.raises(DataError, match=r"none of the 1 images .*more than 3 are refused"):
        first_readable(images[1:], 3)
    with pytest.raises(DataError, match="none of the 0 images can be read"):
        first_readable([], None)


def test_the_role_of_the_folder_is_named_in_notes_and_errors(tmp_path: Path):
    put(tmp_path / "a.png")
    put(tmp_path / "b.svg", b"\0")
    _, (note,) = open_images(tmp_path, Config(), role="val images")
    assert note.startswith("val images: 1 file left out")
    with pytest.raises(DataError, match=r"^val images: .*nowhere"):
        open_images(tmp_path / "nowhere", Config(), role="val images")
