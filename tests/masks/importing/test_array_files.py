"""NPZ and NPY files of masks, and those that hold pickles or are damaged."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from amg_samples import MASKS, SIZE, record
from pycocotools import mask as coco

from sfss_ray.errors import DataError
from sfss_ray.masks.importing.array_files import read_array_masks

PIXELS = np.stack(MASKS["frame3"])
STRINGS = [
    coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode() for mask in PIXELS
]


def save(folder: Path, *arrays, **named) -> Path:
    np.savez_compressed(folder / "a.npz", *arrays, **named)
    return folder / "a.npz"


def counts(path: Path) -> list[str]:
    return [stored["counts"] for stored in read_array_masks(path, SIZE)]


@pytest.mark.parametrize("name", ["masks", "segmentation", "my_masks"])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_an_array_of_masks(name, dtype, tmp_path: Path):
    assert counts(save(tmp_path, **{name: PIXELS.astype(dtype)})) == STRINGS


def test_other_layouts_of_the_same_masks(tmp_path: Path):
    assert counts(save(tmp_path, masks=PIXELS[:, None])) == STRINGS
    assert counts(save(tmp_path, *PIXELS)) == STRINGS
    assert counts(save(tmp_path, *PIXELS[:1])) == STRINGS[:1]
    assert counts(save(tmp_path, masks=PIXELS[:0])) == []
    assert counts(save(tmp_path, masks=[], scores=[])) == []
    np.save(tmp_path / "a.npy", PIXELS)
    assert counts(tmp_path / "a.npy") == STRINGS


def test_attributes_are_read_by_sams_names_and_by_those_of_pipelines(tmp_path: Path):
    records = [record(mask, 0.5 + k / 8) for k, mask in enumerate(PIXELS)]
    columns = {
        name: np.array([entry[name] for entry in records])
        for name in ("predicted_iou", "stability_score", "point_coords", "crop_box")
    }
    stored = read_array_masks(save(tmp_path, masks=PIXELS, **columns), SIZE)
    assert [entry["predicted_iou"] for entry in stored] == [0.5, 0.625, 0.75]
    assert [entry["stability_score"] for entry in stored] == [0.25, 0.3125, 0.375]
    assert [entry["point"] for entry in stored] == [[1.5, 2.25]] * 3
    assert [entry["crop_box"] for entry in stored] == [[0, 0, 40, 24]] * 3
    scores = np.array([0.5, 0.25, 0.125], np.float32)
    stored = read_array_masks(save(tmp_path, masks=PIXELS, scores=scores), SIZE)
    assert [entry["predicted_iou"] for entry in stored] == scores.tolist()
    assert all(math.isnan(entry["stability_score"]) for entry in stored)


def test_one_array_of_ids_is_an_id_map(tmp_path: Path):
    """Ids above 65535 are possible."""
    ids = np.zeros(SIZE, np.int32)
    ids[2:5, 3:9], ids[10:, 20:] = 70_000, 3
    masks = [(ids == 3), (ids == 70_000)]
    expected = [coco.encode(np.asfortranarray(m.astype(np.uint8)))["counts"] for m in masks]
    assert counts(save(tmp_path, ids=ids)) == [string.decode() for string in expected]


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as raised:
        read_array_masks(path, SIZE)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_pickled_objects_are_not_loaded(tmp_path: Path):
    records = np.array([record(mask) for mask in PIXELS], dtype=object)
    assert "pickles run code when they are opened" in refusal(save(tmp_path, masks=records))
    np.save(tmp_path / "a.npy", records)
    assert "pickles run code when they are opened" in refusal(tmp_path / "a.npy")
    torch.save({"masks": torch.ones(1, 2, 3)}, tmp_path / "b.npz")
    assert "which is no array; pickles run code" in refusal(tmp_path / "b.npz")


def test_damaged_files_are_refused(tmp_path: Path):
    path = save(tmp_path, masks=PIXELS)
    data = path.read_bytes()
    for length in (0, 50, len(data) // 2, len(data) - 10):
        path.write_bytes(data[:length])
        assert "is no file of arrays, or damaged" in refusal(path) or "pickled" in refusal(path)
    stream = io.BytesIO()
    np.save(stream, PIXELS)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("masks.npy", stream.getvalue()[:-100])
    assert "is no file of arrays, or damaged" in refusal(path)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"masks": PIXELS[:, :5]}, "it is 40x5 pixels, its image is 40x24"),
        (
            {"masks": PIXELS, "scores": np.ones(2)},
            "scores has the shape (2,), but there are 3 masks",
        ),
        ({"masks": PIXELS + 0.5}, "masks is float64 (3, 24, 40): allowed are masks"),
        ({"masks": PIXELS[0, 0]}, "masks is bool (40,): allowed are masks"),
        ({"masks": np.array(["a"])}, "masks is <U1 (1,): allowed are masks"),
        ({"scores": np.ones(2)}, "it has no array of masks"),
        ({"ids": np.full(SIZE, -1)}, "it has the id -1: allowed are whole numbers from 0"),
        ({"masks": PIXELS, "point_coords": np.ones((3, 1))}, "a point has 2 numbers"),
    ],
)
def test_arrays_of_other_shapes_are_refused(arrays, reason, tmp_path: Path):
    assert reason in refusal(save(tmp_path, **arrays))
