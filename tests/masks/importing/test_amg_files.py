"""Files of amg.py: boxes from runs, and kinds of damage, of which only one image fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from amg_samples import MASKS, SIZE, WRITERS, as_rle, import_quietly, put_images, put_masks, record
from PIL import Image
from segment_anything.utils.amg import mask_to_rle_pytorch

from sfss_ray.errors import DataError
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.importing.amg_files import bounding_box


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return put_images(tmp_path / "images", *MASKS)


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((5, 4), bool),
        np.ones((5, 4), bool),
        np.eye(5, dtype=bool),
        np.pad(np.ones((2, 3), bool), ((1, 2), (3, 0))),
        np.pad(np.ones((1, 1), bool), ((0, 4), (2, 1))),
        np.indices((5, 4)).sum(0) % 2 == 1,
    ],
)
def test_boxes_are_those_of_the_pixels(mask: np.ndarray):
    runs = mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0]["counts"]
    assert bounding_box(np.array(runs), mask.shape[0]) == record(mask)["bbox"]


def test_boxes_of_random_masks_are_those_of_the_pixels():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(1, 9, 2)
        mask = rng.random((height, width)) < rng.choice([0.05, 0.3, 0.9])
        runs = mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0]["counts"]
        assert bounding_box(np.array(runs), height) == record(mask)["bbox"]


def first_json(source: Path, change: Callable[[list], Any]) -> None:
    path = source / "frame2.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def table(source: Path, change: Callable[[str], str]) -> None:
    path = source / "frame2" / "metadata.csv"
    path.write_text(change(path.read_text()))


def truncate(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def png(source: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(source / "frame2" / "1.png")


BAD_FOLDERS = {
    "no table": (lambda s: (s / "frame2" / "metadata.csv").unlink(), "metadata.csv.*No such file"),
    "column": (lambda s: table(s, lambda t: t.replace("predicted_iou", "iou")), "no column 'pred"),
    "empty table": (lambda s: table(s, lambda t: ""), "no column 'id'"),
    "words": (
        lambda s: table(s, lambda t: t.replace("0.9", "good")),
        "id '0' has an invalid number",
    ),
    "crop too large": (
        lambda s: table(s, lambda t: t.replace(",0,0,40,24", ",0,0,1e12,24")),
        "the line of id '0' .*crop box is",
    ),
    "short line": (lambda s: table(s, lambda t: t[:-12] + "\n"), "id '1' has an invalid number"),
    "bytes": (lambda s: (s / "frame2" / "metadata.csv").write_bytes(b"\xff\xfe\x00"), "be read"),
    "no PNG": (lambda s: (s / "frame2" / "1.png").unlink(), "contains 1 PNG .* lists 2 .* '1'"),
    "no line": (lambda s: table(s, lambda t: t[: t.rindex("\n1,") + 1]), "2 PNG .* lists 1"),
    "line twice": (
        lambda s: table(s, lambda t: t + t.splitlines()[-1] + "\n"),
        "lists 3 .*'one id twice'",
    ),
    "cut PNG": (
        lambda s: truncate(s / "frame2" / "1.png", 60),
        r"1\.png' is not a PNG file, or damaged",
    ),
    "no end": (lambda s: truncate(s / "frame2" / "1.png", -12), "not a PNG file, or damaged"),
    "wrong bit": (lambda s: flip(s / "frame2" / "1.png", 50), "not a PNG file, or damaged"),
    "empty PNG": (lambda s: truncate(s / "frame2" / "1.png", 0), "not a PNG file, or damaged"),
    "grey": (lambda s: png(s, np.full(SIZE, 128, np.uint8)), "other values than 0 and 255"),
    "0 and 1": (lambda s: png(s, np.ones(SIZE, np.uint8)), "other values than 0 and 255"),
    "size": (lambda s: png(s, np.zeros((40, 24), np.uint8)), "it is 24x40 pixels, its image is 40"),
}
BAD_JSON = {
    "cut": (lambda s: truncate(s / "frame2.json", 80), "cannot be read as JSON"),
    "bytes": (lambda s: (s / "frame2.json").write_bytes(b"\xff\xfe"), "cannot be read as JSON"),
    "deep": (lambda s: (s / "frame2.json").write_text("[" * 100_000), "cannot be read as JSON"),
    "no list": (
        lambda s: first_json(s, lambda r: {"annotations": r}),
        "does not contain a list of masks",
    ),
    "no key": (
        lambda s: first_json(s, lambda r: [{k: v for k, v in r[0].items() if k != "crop_box"}]),
        "mask 0 has no 'crop_box'",
    ),
    "no record": (lambda s: first_json(s, lambda r: [*r, 7]), "mask 2 has no 'segmentation'"),
    "words": (
        lambda s: first_json(s, lambda r: [r[0] | {"predicted_iou": "good"}]),
        "mask 0 is not a record .*good",
    ),
    "point": (lambda s: first_json(s, lambda r: [r[0] | {"point_coords": []}]), "is not a record"),
    "crop": (lambda s: first_json(s, lambda r: [r[0] | {"crop_box": [1, 2]}]), "a crop box 4"),
    "crop too large": (
        lambda s: first_json(s, lambda r: [r[0] | {"crop_box": [0, 0, 1e12, 24]}]),
        "mask 0 is not a record .*crop box is .*1000000000000",
    ),
    "no crop": (
        lambda s: first_json(s, lambda r: [r[0] | {"crop_box": [0, 0, float("nan"), 24]}]),
        "mask 0 is not a record .*crop box is",
    ),
    "polygon": (
        lambda s: first_json(s, lambda r: [r[0] | {"segmentation": [[1, 2, 3]]}]),
        "mask 0 is not a record",
    ),
    "size": (
        lambda s: first_json(
            s, lambda r: [r[0], as_rle(record(np.ones((SIZE[1], SIZE[0]), bool)))]
        ),
        "mask 1: it is 24x40 pixels, its image is 40x24",
    ),
    "runs": (
        lambda s: first_json(
            s, lambda r: [r[0] | {"segmentation": {"size": [*SIZE], "counts": "55"}}]
        ),
        "mask 0: its runs cover 10 pixels, not 960",
    ),
    "letters": (
        lambda s: first_json(
            s, lambda r: [r[0] | {"segmentation": {"size": [*SIZE], "counts": "é~"}}]
        ),
        "mask 0: not a COCO RLE string",
    ),
}


@pytest.mark.parametrize(
    ("kind", "case"), [("png", c) for c in BAD_FOLDERS] + [("json", c) for c in BAD_JSON]
)
def test_only_the_image_of_damaged_masks_fails(kind, case, images: Path, tmp_path: Path):
    damage, reason = (BAD_FOLDERS if kind == "png" else BAD_JSON)[case]
    source = put_masks(tmp_path / "sam", WRITERS[kind])
    damage(source)
    summary = import_quietly(source, images, tmp_path / "out")
    assert set(summary.errors) == {"frame2"}
    with pytest.raises(DataError, match=reason):
        raise DataError(summary.errors["frame2"])
    assert "\n" not in summary.errors["frame2"]
    assert MaskStore(tmp_path / "out").load("frame2")["masks"] == []
    assert summary.masks == 8
