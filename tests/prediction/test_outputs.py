"""Files of predictions: their pixels, the image that they record, and which images are done."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from image_files import put
from PIL import Image
from torch import nn

from sfss_ray.config import EvaluationConfig
from sfss_ray.data.class_sets import (
    CAMVID_11,
    CITYSCAPES_19,
    CITYSCAPES_LABEL_IDS,
    SYNTHIA_16,
    class_set_of,
)
from sfss_ray.data.content import Content
from sfss_ray.data.folders import ImageFile
from sfss_ray.errors import DataError, OutputError
from sfss_ray.evaluation import inference
from sfss_ray.prediction.outputs import PredictionFolder, label_id_table, predict_file

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
TRAIN_IDS = RNG.integers(0, 19, (6, 9), dtype=np.uint8)


def file_of(tmp_path: Path, image_id: str) -> ImageFile:
    return ImageFile(image_id, put(tmp_path / "images" / f"{image_id}.png", IMAGE))


def write(folder: PredictionFolder, file: ImageFile) -> None:
    folder.write(file.image_id, IMAGE, TRAIN_IDS, Content.of_file(file.path))


def test_label_ids_are_assigned_by_class_name():
    table = label_id_table(SYNTHIA_16)
    assert table is not None
    names = SYNTHIA_16.classes
    label_ids = [int(table[names.index(n)]) for n in ("road", "sky", "person", "bus", "bicycle")]
    assert label_ids == [7, 23, 24, 28, 33]
    assert (table[len(names) :] == 0).all(), "Cityscapes' unlabeled"
    assert label_id_table(CAMVID_11) is None
    assert label_id_table(class_set_of(("road", "tree"))) is None


def test_the_folders_depend_on_the_class_set(tmp_path: Path):
    assert PredictionFolder(tmp_path, CITYSCAPES_19).kinds == (
        "colour",
        "overlay",
        "label_ids",
        "train_ids",
    )
    assert PredictionFolder(tmp_path, CAMVID_11).kinds == ("colour", "overlay", "train_ids")


def test_every_file_has_the_pixels_of_its_kind(tmp_path: Path):
    folder = PredictionFolder(tmp_path / "out", CITYSCAPES_19)
    file = file_of(tmp_path, "city/a")
    write(folder, file)
    pixels = {
        kind: np.asarray(Image.open(tmp_path / "out" / kind / "city" / "a.png"))
        for kind in folder.kinds
    }
    assert np.array_equal(pixels["train_ids"], TRAIN_IDS)
    colours = np.array(CITYSCAPES_19.palette)[TRAIN_IDS]
    assert np.array_equal(pixels["colour"], colours)
    assert np.array_equal(pixels["overlay"], (IMAGE.astype(int) + colours) // 2)
    names = np.array(CITYSCAPES_19.classes)[TRAIN_IDS]
    expected = np.vectorize(CITYSCAPES_LABEL_IDS.__getitem__)(names)
    assert np.array_equal(pixels["label_ids"], expected)
    assert not list((tmp_path / "out").rglob(".*")), "no temporary file stays"


def test_a_png_records_its_image(tmp_path: Path):
    folder = PredictionFolder(tmp_path / "out", CITYSCAPES_19)
    file = file_of(tmp_path, "a")
    write(folder, file)
    content = Content.of_file(file.path)
    for kind in folder.kinds:
        text = Image.open(folder.path(kind, "a")).info["sfss_ray.image"]
        assert text == f"{content.size} {content.mtime_ns} {content.sha256}"


def test_the_record_is_read_whatever_checksum_follows_it(tmp_path: Path):
    """The checksum of a PNG's text depends on the recorded time, and may look like a part of a hash."""
    folder = PredictionFolder(tmp_path / "out", CITYSCAPES_19)
    file = file_of(tmp_path, "a")
    for time_ns in range(60):
        os.utime(file.path, ns=(time_ns, time_ns))
        write(folder, file)
        os.utime(file.path, ns=(7, 10**9))  # touched: the hash decides
        assert folder.remaining([file]) == ([], set())


def test_images_are_done_once_their_train_ids_are_there(tmp_path: Path):
    folder = PredictionFolder(tmp_path / "out", CITYSCAPES_19)
    files = [file_of(tmp_path, name) for name in ("a", "b", "c")]
    for file in files[:2]:
        write(folder, file)
    folder.path("train_ids", "b").unlink()
    assert folder.remaining(files) == (files[1:], set())


def test_images_with_another_content_are_predicted_again(tmp_path: Path):
    folder = PredictionFolder(tmp_path / "out", CITYSCAPES_19)
    files = [file_of(tmp_path, name) for name in ("a", "b")]
    for file in files:
        write(folder, file)
    os.utime(files[0].path, ns=(7, 7))
    put(files[1].path, 255 - IMAGE)
    assert folder.remaining(files) == ([files[1]], {"b"})


@pytest.mark.parametrize(
    ("change", "is_outdated"),
    [("none", False), ("newer", True), ("other size", True), ("unreadable", True)],
)
def test_a_png_without_a_record_is_compared_by_time_and_size(change, is_outdated, tmp_path: Path):
    """As former releases wrote them."""
    folder = PredictionFolder(tmp_path / "out", CITYSCAPES_19)
    file = file_of(tmp_path, "a")
    put(folder.path("train_ids", "a"), TRAIN_IDS)
    if change == "other size":
        put(file.path, IMAGE[:4])
    if change == "unreadable":
        put(file.path, b"no image")
    os.utime(file.path, ns=(7, 7))
    if change == "newer":
        os.utime(folder.path("train_ids", "a"), ns=(3, 3))
    remaining, outdated = folder.remaining([file])
    assert outdated == ({"a"} if is_outdated else set())
    assert remaining == ([file] if is_outdated else [])


def test_an_image_that_cannot_be_read_is_an_error_with_its_path(tmp_path: Path):
    folder = PredictionFolder(tmp_path / "out", CITYSCAPES_19)
    network = nn.Identity()
    missing = ImageFile("a", tmp_path / "a.png")
    with pytest.raises(DataError, match=r"image '.*a\.png': No such file"):
        predict_file(network, missing, folder, EvaluationConfig())  # pyright: ignore
    broken = ImageFile("b", put(tmp_path / "b.png", b"a letter"))
    with pytest.raises(DataError, match=r"image '.*b\.png': "):
        predict_file(network, broken, folder, EvaluationConfig())  # pyright: ignore
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_an_output_error(tmp_path: Path, monkeypatch):
    probabilities = np.eye(19, dtype=np.float32)[TRAIN_IDS].transpose(2, 0, 1)
    monkeypatch.setattr(inference, "predict_probabilities", lambda *_: probabilities)
    (tmp_path / "out").touch()
    folder = PredictionFolder(tmp_path / "out", CITYSCAPES_19)
    file = file_of(tmp_path, "a")
    with pytest.raises(OutputError, match="cannot be written"):
        predict_file(nn.Identity(), file, folder, EvaluationConfig())  # pyright: ignore
    folder = PredictionFolder(tmp_path / "new", CITYSCAPES_19)
    predict_file(nn.Identity(), file, folder, EvaluationConfig())  # pyright: ignore
    assert np.array_equal(Image.open(folder.path("train_ids", "a")), TRAIN_IDS)
