"""Folders of amg.py, and kinds of damage, of which only one image fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from amg_samples import MASKS, SIZE, put_images, put_masks, refuse_frame2, write_folder
from PIL import Image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return put_images(tmp_path / "images", *MASKS)


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


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_only_the_image_of_damaged_masks_fails(case, images: Path, tmp_path: Path):
    damage, reason = BAD_FOLDERS[case]
    source = put_masks(tmp_path / "sam", write_folder)
    damage(source)
    refuse_frame2(source, images, tmp_path / "out", reason)
