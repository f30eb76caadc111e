"""The contact sheet of masks: what is drawn, which images are chosen, and where it may lie."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sfss_ray.data.decoding import read_image
from sfss_ray.errors import DataError, OutputError
from sfss_ray.inspection.mask_sheet import choose_images, draw_sheet, refuse_among_images
from sfss_ray.masks.bank.store import MaskStore

IDS = ["drive/a", "drive/b", "drive/c"]


def test_the_contact_sheet_shows_masks_over_images(mask_folder: Path, tmp_path: Path):
    path = tmp_path / "new" / "sheet.png"
    assert draw_sheet(MaskStore(mask_folder), IDS, path) == (path, {})
    sheet = read_image(path)
    assert sheet.shape[1] > 3 * 300  # three tiles of 330 x 220 pixels beside each other
    image = read_image(tmp_path / "images" / "drive" / "c.png")
    plain = cv2.resize(image, (330, 220), interpolation=cv2.INTER_LINEAR)
    assert (sheet[-230:-10, -340:-10] == plain).all()  # c has no mask: it is itself
    assert np.abs(sheet[-230:-10, 10:340].astype(int) - plain).mean() > 10


def test_images_that_moved_or_changed_are_named(mask_folder: Path, tmp_path: Path):
    (tmp_path / "images" / "drive" / "a.png").unlink()
    Image.new("RGB", (31, 20)).save(tmp_path / "images" / "drive" / "b.png")
    path, not_shown = draw_sheet(MaskStore(mask_folder), IDS, tmp_path / "sheet.png")
    assert path == tmp_path / "sheet.png"
    assert set(not_shown) == {"drive/a", "drive/b"}
    assert "No such file" in not_shown["drive/a"]
    assert "is 31x20, its masks are 30x20: it was changed" in not_shown["drive/b"]


def test_a_sheet_that_cannot_be_written_is_one_line(mask_folder: Path, tmp_path: Path):
    with pytest.raises(OutputError, match=r"' cannot be written \(Is a directory"):
        draw_sheet(MaskStore(mask_folder), IDS, tmp_path)


def test_without_a_drawable_image_no_file_is_written(mask_folder: Path, tmp_path: Path):
    path = tmp_path / "sheet.png"
    assert draw_sheet(MaskStore(mask_folder), [], path) == (None, {})
    assert not path.exists()


def test_images_are_chosen_by_the_seed_and_keep_their_order():
    ids = [f"{number:03}" for number in range(50)]
    choices = [choose_images(ids, 5, seed) for seed in range(4)]
    assert choices[0] == choose_images(ids, 5, 0)
    assert len({tuple(choice) for choice in choices}) == 4
    for choice in choices:
        assert len(set(choice)) == 5
        assert choice == sorted(choice)
    assert choose_images(ids[:3], 5, 0) == ids[:3]
    assert choose_images(ids, 0, 0) == []


def test_a_sheet_among_the_images_is_refused(mask_folder: Path, tmp_path: Path):
    store = MaskStore(mask_folder)
    for path in (tmp_path / "images" / "sheet.png", tmp_path / "images" / "new" / "sheet.png"):
        with pytest.raises(DataError, match="lies in the folder of the images"):
            refuse_among_images(path, store)
    refuse_among_images(tmp_path / "sheet.png", store)
    refuse_among_images(tmp_path / "images.png", store)
