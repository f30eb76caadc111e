"""Label and instance maps: a mask for each id, whatever the depth and colours of the file."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from amg_samples import MASKS, SIZE
from PIL import Image
from png_files import PALETTE, png
from pycocotools import mask as coco

from sfss_ray.errors import DataError
from sfss_ray.masks.importing.id_maps import read_id_map, records_of_ids


def painted(*numbers: int) -> np.ndarray:
    """Return a map of ellipses with these ids, int64 (H, W)."""
    ids = np.zeros(SIZE, np.int64)
    for number, mask in zip(numbers, MASKS["frame4"], strict=False):
        ids[mask] = number
    return ids


def expected(ids: np.ndarray) -> list[str]:
    """Return the string of pycocotools for each id above 0, in ascending order."""
    masks = [np.asfortranarray((ids == i).astype(np.uint8)) for i in sorted({*ids.flat} - {0})]
    return [coco.encode(mask)["counts"].decode() for mask in masks]


def counts(path: Path) -> list[str]:
    return [stored["counts"] for stored in read_id_map(path, SIZE)]


def write(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_maps_of_every_depth(bits, tmp_path: Path):
    highest = 2**bits - 1
    ids = painted(*sorted({1, highest // 2 or 1, highest}))
    (tmp_path / "a.png").write_bytes(png(ids, bits))
    assert counts(tmp_path / "a.png") == expected(ids)


def test_instance_ids_of_cityscapes(tmp_path: Path):
    """Classes without instances have their label id, instances label id x 1000 + number."""
    ids = painted(7, 26001, 26000, 33012)
    path = write(tmp_path / "a_gtFine_instanceIds.png", ids.astype(np.uint16))
    records = read_id_map(path, SIZE)
    assert [stored["counts"] for stored in records] == expected(ids)
    assert [stored["area"] for stored in records] == [
        int((ids == number).sum()) for number in sorted({*ids.flat} - {0})
    ]
    assert all(math.isnan(stored["predicted_iou"]) for stored in records)


def test_palettes_give_the_index(tmp_path: Path):
    ids = painted(3, 1, 200)
    (tmp_path / "a.png").write_bytes(png(ids, 8, PALETTE))
    assert counts(tmp_path / "a.png") == expected(ids)


def test_each_colour_is_an_id(tmp_path: Path):
    """As in COCO's panoptic maps, where ids may exceed 65535."""
    ids = painted(70_000, 258, 66_000)
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    assert counts(write(tmp_path / "a.png", colours)) == expected(ids)
    opaque = np.where(ids == 258, 0, 255).astype(np.uint8)[..., None]
    ids[ids == 258] = 0
    path = write(tmp_path / "b.png", np.concatenate([colours, opaque], axis=-1))
    assert counts(path) == expected(ids)
    grey = np.stack([ids % 251, opaque[..., 0]], axis=-1).astype(np.uint8)
    assert counts(write(tmp_path / "c.png", grey)) == expected(ids % 251)


def test_tiff_files_hold_ids_above_65535(tmp_path: Path):
    ids = painted(70_000, 3, 2_000_000_000)
    assert counts(write(tmp_path / "a.tif", ids.astype(np.int32))) == expected(ids)


def test_train_ids_begin_with_a_class(tmp_path: Path):
    """255 is Cityscapes' void, and 0 is road."""
    ids = painted(0, 13, 18)
    ids[:, :3] = 255
    path = write(tmp_path / "a_gtFine_labelTrainIds.png", ids.astype(np.uint8))
    assert counts(path) == expected(np.where(ids == 255, 0, ids + 1))


def test_a_map_without_background_and_one_without_masks(tmp_path: Path):
    full = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) // 100 + 5
    assert [r["counts"] for r in records_of_ids(full, SIZE)] == expected(full)
    assert counts(write(tmp_path / "a.png", np.zeros(SIZE, np.uint8))) == []


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as raised:
        read_id_map(path, SIZE)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_damaged_files_are_refused(tmp_path: Path):
    path = write(tmp_path / "a.png", np.random.default_rng(0).integers(0, 9, SIZE, np.uint8))
    data = path.read_bytes()
    for length in (0, 20, 60, len(data) // 2):
        path.write_bytes(data[:length])
        assert "is not a PNG or TIFF file, or damaged" in refusal(path)


def test_other_files_are_refused(tmp_path: Path):
    ids = painted(3).astype(np.uint8)
    Image.fromarray(ids).save(tmp_path / "a.png", "JPEG")
    assert "it is JPEG: give ids as PNG or TIFF" in refusal(tmp_path / "a.png")
    assert "it is 24x40 pixels, its image is 40x24" in refusal(write(tmp_path / "b.png", ids.T))
    path = write(tmp_path / "c.tif", ids.astype(np.float32))
    assert "Pillow's mode 'F', which are no ids" in refusal(path)
    cv2.imwrite(str(tmp_path / "d.png"), np.ones((*SIZE, 3), np.uint16))
    assert "its colours have 16 bits a channel: save them with 8" in refusal(tmp_path / "d.png")
    path = write(tmp_path / "e.tif", np.full(SIZE, -2, np.int32))
    assert "it has the id -2: allowed are whole numbers from 0" in refusal(path)
