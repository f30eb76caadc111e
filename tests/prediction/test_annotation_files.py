"""Annotation files, painted back into the train ids by independent readers."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from image_files import put
from PIL import Image
from pycocotools.coco import COCO

from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.data.content import Content
from sfss_ray.data.folders import ImageFile
from sfss_ray.errors import ConfigError, DataError
from sfss_ray.prediction.annotation_files import FILE_NAMES, check_formats, write_annotations
from sfss_ray.prediction.outputs import TRAIN_IDS, PredictionFolder

RNG = np.random.default_rng(0)


def blocks(height: int, width: int) -> np.ndarray:
    """Return train ids of few classes, uint8 (H, W)."""
    ids = RNG.choice([0, 2, 10, 13, 18], (height // 4 + 1, width // 4 + 1))
    return ids.repeat(4, axis=0).repeat(4, axis=1)[:height, :width].astype(np.uint8)


PREDICTIONS = {"city/a": blocks(24, 40), "b": blocks(17, 9), "c": np.full((5, 6), 18, np.uint8)}


@pytest.fixture
def files(tmp_path: Path) -> list[ImageFile]:
    return [ImageFile(name, put(tmp_path / "images" / f"{name}.png")) for name in PREDICTIONS]


@pytest.fixture
def folder(files: list[ImageFile], tmp_path: Path) -> PredictionFolder:
    """Return predictions that were written as the network writes them."""
    folder = PredictionFolder(tmp_path / "out", CITYSCAPES_19)
    for file, ids in zip(files, PREDICTIONS.values(), strict=True):
        picture = np.zeros((*ids.shape, 3), np.uint8)
        folder.write(file.image_id, picture, ids, Content.of_file(file.path))
    return folder


def from_coco(path: Path) -> dict[str, np.ndarray]:
    """Return the train ids of each image with pycocotools; -1 where no mask lies."""
    api = COCO(path)
    names = {category["id"]: category["name"] for category in api.loadCats(api.getCatIds())}
    painted = {}
    for image in api.loadImgs(api.getImgIds()):
        ids = np.full((image["height"], image["width"]), -1)
        for annotation in api.loadAnns(api.getAnnIds(imgIds=[image["id"]])):
            mask = api.annToMask(annotation) > 0
            assert (ids[mask] == -1).all(), "masks overlap"
            assert annotation["area"] == mask.sum()
            ids[mask] = CITYSCAPES_19.classes.index(names[annotation["category_id"]])
        painted[image["file_name"]] = ids
    return painted


def from_cvat(path: Path) -> dict[str, np.ndarray]:
    """Return the train ids of each image, run by run."""
    painted = {}
    for image in ElementTree.parse(path).getroot().iter("image"):
        ids = np.full((int(image.get("height", 0)), int(image.get("width", 0))), -1)
        for mask in image.iter("mask"):
            entries: dict[str, Any] = mask.attrib
            left, top, width, height = (
                int(entries[name]) for name in ("left", "top", "width", "height")
            )
            pixels: list[int] = []
            for k, run in enumerate(entries["rle"].split(", ")):
                pixels += int(run) * [k % 2]
            inside = np.array(pixels).reshape(height, width) > 0
            box = ids[top : top + height, left : left + width]
            assert (box[inside] == -1).all(), "masks overlap"
            box[inside] = CITYSCAPES_19.classes.index(entries["label"])
        painted[image.get("name")] = ids
    return painted


@pytest.mark.parametrize(("kind", "read"), [("coco", from_coco), ("cvat", from_cvat)])
def test_the_masks_are_the_train_ids(kind, read, folder: PredictionFolder, files):
    (path,) = write_annotations(folder, files, [kind], str)
    assert path == folder.root / FILE_NAMES[kind]
    painted = read(path)
    assert list(painted) == [f"{name}.png" for name in PREDICTIONS]
    for name, ids in PREDICTIONS.items():
        assert np.array_equal(painted[f"{name}.png"], ids), name


def test_both_files_are_written_at_once(folder: PredictionFolder, files):
    lines: list[str] = []
    paths = write_annotations(folder, files, ("coco", "cvat"), lines.append)
    assert [path.name for path in paths] == ["coco.json", "cvat.xml"]
    coco, cvat = from_coco(paths[0]), from_cvat(paths[1])
    assert all(np.array_equal(coco[name], cvat[name]) for name in coco)
    assert lines[-1].startswith("annotated 3/3 (")
    assert not list(folder.root.glob(".*")), "no temporary file stays"


def test_a_prediction_that_cannot_be_read_is_named(folder: PredictionFolder, files):
    path = folder.path(TRAIN_IDS, "b")
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(
        DataError, match=r"prediction '.*b\.png' cannot be read .* remove it"
    ) as error:
        write_annotations(folder, files, ["coco", "cvat"], str)
    assert "\n" not in str(error.value)
    assert not list(folder.root.glob("*.json"))
    assert not list(folder.root.glob(".*"))


def test_memory_does_not_grow_with_the_images(files, folder: PredictionFolder):
    """The same few predictions are listed again and again."""

    def peak(repeats: int) -> int:
        tracemalloc.start()
        write_annotations(folder, files * repeats, ["coco", "cvat"], str)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(10)
    few, many = peak(40), peak(400)
    assert (folder.root / "coco.json").stat().st_size > 800_000
    assert many < few + 300_000


def test_formats_are_checked():
    assert check_formats(()) == ()
    assert check_formats(["cvat", "coco", "cvat"]) == ("cvat", "coco")
    assert check_formats("coco,cvat") == ("coco", "cvat")
    with pytest.raises(ConfigError, match="formats contains 'yolo': allowed are 'coco' and 'cvat'"):
        check_formats(["coco", "yolo"])


def test_train_ids_are_read_as_they_were_written(folder: PredictionFolder):
    for name, ids in PREDICTIONS.items():
        assert np.array_equal(Image.open(folder.path(TRAIN_IDS, name)), ids)
