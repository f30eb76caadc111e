"""Predictions of a folder in this process: files, repeated calls, and images that fail."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from sfss_ray import cli
from sfss_ray.config import Config, EvaluationConfig, override
from sfss_ray.data.class_sets import (
    CAMVID_11,
    CITYSCAPES_19,
    ClassSet,
)
from sfss_ray.data.decoding import read_image
from sfss_ray.data.folders import read_labels
from sfss_ray.data.shipped_groups import shipped_grouping
from sfss_ray.errors import ConfigError, DataError, ResumeError
from sfss_ray.evaluation import inference
from sfss_ray.evaluation.inference import predict_probabilities
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.model_file import SourceModel, load_model, save_model
from sfss_ray.prediction.folder import predict
from sfss_ray.prediction.outputs import PredictionFolder
from sfss_ray.runtime.run_claim import LOCK_FILE, claimed
from sfss_ray.storage.files import temporary_name
from sfss_ray.streets.default import SOURCE_MODEL
from sfss_ray.streets.scenes import write_streets

SIZE = (64, 128)
CPU = override(Config(), {"compute.device": "cpu"})


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Three drawn streets, in Cityscapes' folders and names."""
    root = tmp_path_factory.mktemp("streets")
    write_streets(root, "camera", 3, 3, SIZE, with_labels=False)
    city = root / "leftImg8bit" / "aachen"
    city.mkdir(parents=True)
    for index, path in enumerate(sorted((root / "images").iterdir())):
        shutil.copy(path, city / f"aachen_{index:06d}_000019_leftImg8bit.png")
    return root / "leftImg8bit"


def model_of(classes: ClassSet, folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    network = build_network("compact", len(classes))
    return save_model(
        folder / f"{classes.name}-{seed}.pt", SourceModel(network, "compact", classes)
    )


def test_every_file_shows_the_predictions_of_the_network(images, tmp_path: Path):
    result = predict(SOURCE_MODEL, images, tmp_path / "out", config=CPU, progress=str)
    assert (result.images, result.made, result.errors) == (3, 3, {})
    assert result.kinds == ("colour", "overlay", "label_ids", "train_ids")
    network = load_model(SOURCE_MODEL).network
    for path in sorted(images.rglob("*.png")):
        image = read_image(path)
        expected = predict_probabilities(network, image, EvaluationConfig()).argmax(0)
        assert len(np.unique(expected)) > 3
        name = f"aachen/{path.name}"
        train_ids = Image.open(tmp_path / "out" / "train_ids" / name)
        assert (train_ids.mode, train_ids.size) == ("L", (SIZE[1], SIZE[0]))
        assert np.array_equal(train_ids, expected)
        colours = np.array(Image.open(tmp_path / "out" / "colour" / name))
        assert np.array_equal(colours, np.array(CITYSCAPES_19.palette)[expected])
        overlay = np.array(Image.open(tmp_path / "out" / "overlay" / name)).astype(int)
        assert np.abs(overlay - (image.astype(int) + colours) / 2).max() <= 0.5


def test_label_ids_are_read_back_as_the_train_ids(images, tmp_path: Path):
    """With the reader of Cityscapes' *_labelIds files."""
    predict(SOURCE_MODEL, images, tmp_path / "out", config=CPU, progress=str)
    files = sorted((tmp_path / "out" / "label_ids").rglob("*.png"))
    assert len(files) == 3
    for path in files:
        copy = tmp_path / f"{path.stem}_labelIds.png"
        shutil.copy(path, copy)
        name = path.relative_to(tmp_path / "out" / "label_ids")
        train_ids = Image.open(tmp_path / "out" / "train_ids" / name)
        assert np.array_equal(read_labels(copy), train_ids)
        assert np.array(Image.open(path)).min() >= 7  # Cityscapes' road


def test_the_summary_explains_missing_label_ids(images, tmp_path: Path):
    model = model_of(CAMVID_11, tmp_path)
    result = predict(model, images, tmp_path / "out", config=CPU, progress=str)
    assert not (tmp_path / "out" / "label_ids").exists()
    assert any("no label_ids" in line for line in result.lines())


def test_a_repeated_call_predicts_only_what_is_missing(images, tmp_path: Path):
    out = tmp_path / "out"
    predict(SOURCE_MODEL, images, out, config=CPU, progress=str)
    folder = PredictionFolder(out, CITYSCAPES_19)
    first, second, _ = sorted(p.stem for p in images.rglob("*.png"))
    before = folder.path("colour", f"aachen/{first}").stat().st_mtime_ns
    missing = folder.path("train_ids", f"aachen/{second}")
    whole = missing.read_bytes()
    missing.unlink()
    leftover = missing.with_name(f".{missing.name}.12345")
    leftover.write_bytes(whole[:20])
    result = predict(SOURCE_MODEL, images, out, config=CPU, progress=str)
    assert (result.images, result.made) == (3, 1)
    assert missing.read_bytes() == whole
    assert not leftover.exists()
    assert folder.path("colour", f"aachen/{first}").stat().st_mtime_ns == before
    assert "images: 3 (2 were predicted before)" in result.lines()


def test_a_folder_that_another_process_writes_to_is_refused(images, tmp_path: Path):
    out = tmp_path / "out"
    refused = pytest.raises(ResumeError, match="another process writes to")
    with claimed(out), refused:
        predict(SOURCE_MODEL, images, out, config=CPU, progress=str)
    assert list(out.iterdir()) == []
    predict(SOURCE_MODEL, images, out, config=CPU, progress=str)
    assert not (out / LOCK_FILE).exists()


def test_names_of_images_may_be_as_long_as_a_disk_takes(images, tmp_path: Path):
    (tmp_path / "images").mkdir()
    name = 251 * "x"
    shutil.copy(next(images.rglob("*.png")), tmp_path / "images" / f"{name}.png")
    result = predict(SOURCE_MODEL, tmp_path / "images", tmp_path / "out", config=CPU, progress=str)
    assert (result.images, result.errors) == (1, {})
    folder = tmp_path / "out" / "train_ids"
    leftover = folder / temporary_name(f"{name}.png")
    leftover.touch()
    again = predict(SOURCE_MODEL, tmp_path / "images", tmp_path / "out", config=CPU, progress=str)
    assert again.made == 0
    assert [path.name for path in folder.iterdir()] == [f"{name}.png"]


def test_predictions_of_another_model_are_refused(images, tmp_path: Path):
    predict(model_of(CITYSCAPES_19, tmp_path), images, tmp_path / "out", config=CPU, progress=str)
    other = model_of(CITYSCAPES_19, tmp_path, seed=1)
    with pytest.raises(ResumeError, match=r"holds another run \(inputs\.model_sha256"):
        predict(other, images, tmp_path / "out", config=CPU, progress=str)


def test_unreadable_images_are_skipped_and_named(images, tmp_path: Path):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    good = next(images.rglob("*.png")).read_bytes()
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes(good[:300])
    result = predict(SOURCE_MODEL, folder, tmp_path / "out", config=CPU, progress=str)
    assert (result.images, set(result.errors)) == (3, {"empty", "cut"})
    assert "2 images could not be predicted:" in result.lines()
    assert any("empty" in line and "0 bytes" in line for line in result.lines())
    for path in folder.rglob("aachen*.png"):
        path.unlink()
    with pytest.raises(DataError, match="none of the 2 images can be read"):
        predict(SOURCE_MODEL, folder, tmp_path / "other", config=CPU, progress=str)


def test_an_output_inside_the_images_is_refused(images, tmp_path: Path):
    with pytest.raises(DataError, match="lies in the folder of images"):
        predict(SOURCE_MODEL, images, images / "out", config=CPU, progress=str)
    assert not (images / "out").exists()


@pytest.mark.parametrize(
    "reason", ["CUDA out of memory. Tried to allocate", "can't allocate memory"]
)
def test_images_too_large_for_the_memory_are_skipped(reason, images, tmp_path: Path, monkeypatch):
    original, images_predicted = inference._average_views, []

    def predict_or_fail(network, image, config):
        images_predicted.append(image)
        if len(images_predicted) == 2:
            raise RuntimeError(reason)
        return original(network, image, config)

    monkeypatch.setattr(inference, "_average_views", predict_or_fail)
    result = predict(SOURCE_MODEL, images, tmp_path / "out", config=CPU, progress=str)
    assert (result.images, len(result.errors)) == (2, 1)
    assert "128x64 pixels are too many" in next(iter(result.errors.values()))


def test_errors_of_the_network_are_raised(images, tmp_path: Path, monkeypatch):
    def broken(network, image, config):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(inference, "_average_views", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        predict(SOURCE_MODEL, images, tmp_path / "out", config=CPU, progress=str)


def test_images_with_replaced_files_are_predicted_again(images, tmp_path: Path):
    """One has another size, one the same size, and one has only a new time."""
    folder, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(images, folder)
    predict(SOURCE_MODEL, folder, out, config=CPU, progress=str)
    first, second, third = sorted(folder.rglob("*.png"))
    height, width = read_image(first).shape[:2]
    Image.new("RGB", (2 * width, height), "gray").save(first)
    Image.fromarray(255 - read_image(second)).save(second)
    os.utime(third, ns=(7, 7))
    lines: list[str] = []
    result = predict(SOURCE_MODEL, folder, out, config=CPU, progress=lines.append)
    assert (result.images, result.made, result.changed) == (3, 2, 2)
    assert "images: 3 (1 were predicted before) (2 changed since and predicted again)" in (
        result.lines()
    )
    assert lines[0].startswith("2 images were changed since they were predicted")
    name = first.relative_to(folder)
    for kind in result.kinds:
        assert Image.open(out / kind / name).size == (2 * width, height)
    fresh = tmp_path / "fresh"
    predict(SOURCE_MODEL, folder, fresh, config=CPU, progress=str)
    for path in sorted((fresh / "train_ids").rglob("*.png")):
        same = out / "train_ids" / path.relative_to(fresh / "train_ids")
        assert np.array_equal(np.asarray(Image.open(same)), np.asarray(Image.open(path)))
    assert predict(SOURCE_MODEL, folder, out, config=CPU, progress=str).made == 0


def test_predictions_without_a_record_are_compared_by_size_and_time(images, tmp_path: Path):
    folder, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(images, folder)
    predict(SOURCE_MODEL, folder, out, config=CPU, progress=str)
    for path in (out / "train_ids").rglob("*.png"):
        ids = Image.open(path)
        ids.load()
        Image.fromarray(np.asarray(ids)).save(path)  # without the text
    assert predict(SOURCE_MODEL, folder, out, config=CPU, progress=str).made == 0
    first = min(folder.rglob("*.png"))
    height, width = read_image(first).shape[:2]
    Image.new("RGB", (width + 8, height)).save(first)
    os.utime(first, ns=(7, 7))
    assert predict(SOURCE_MODEL, folder, out, config=CPU, progress=str).made == 1


def test_12_bit_images_are_predicted_as_their_8_bit_versions(images, tmp_path: Path):
    deep = tmp_path / "deep"
    for path in images.rglob("*.png"):
        pixels = read_image(path)
        pixels[0, 0] = 255
        target = deep / "shallow" / path.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target)
        values = np.rint(pixels * (4095 / 255)).astype(np.uint16)
        target = deep / "deep" / path.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), values[..., ::-1])
    for name in ("deep", "shallow"):
        predict(SOURCE_MODEL, deep / name, tmp_path / f"out-{name}", config=CPU, progress=str)
    for path in (tmp_path / "out-deep" / "train_ids").rglob("*.png"):
        other = tmp_path / "out-shallow" / path.relative_to(tmp_path / "out-deep")
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(other)))


def test_groups_are_predicted_and_other_groups_refused(images, tmp_path: Path):
    out, lines = tmp_path / "out", []
    predict(SOURCE_MODEL, images, out, class_groups="camvid-11", config=CPU, progress=lines.append)
    assert lines[0].startswith("class groups 'camvid-11': sky; building = building + wall; ")
    network = load_model(SOURCE_MODEL).network
    path = sorted(images.rglob("*.png"))[0]
    probabilities = predict_probabilities(network, read_image(path), EvaluationConfig())
    groups = shipped_grouping("camvid-11", CITYSCAPES_19)
    indices = groups.member_indices(CITYSCAPES_19)
    expected = np.stack([probabilities[list(members)].sum(0) for members in indices]).argmax(0)
    name = f"aachen/{path.name}"
    assert np.array_equal(Image.open(out / "train_ids" / name), expected)
    colours = np.array(Image.open(out / "colour" / name))
    assert np.array_equal(colours, np.array(CAMVID_11.palette)[expected])
    assert not (out / "label_ids").exists()
    with pytest.raises(ResumeError, match=r"inputs\.class_groups: sky; .* -> None"):
        predict(SOURCE_MODEL, images, out, config=CPU, progress=str)


def test_annotation_files_hold_every_predicted_image(images, tmp_path: Path, capsys):
    """They may be added to finished predictions, and an unreadable image is not in them."""
    folder, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(images, folder)
    (folder / "empty.png").write_bytes(b"")
    predict(SOURCE_MODEL, folder, out, config=CPU, progress=str)
    (out / ".coco.json.99").touch()
    words = [
        "predict",
        SOURCE_MODEL,
        folder,
        out,
        "--formats",
        "coco,cvat",
        "--compute.device",
        "cpu",
    ]
    assert cli.main([*map(str, words)]) == 0
    assert f"annotations: {out / 'coco.json'}, {out / 'cvat.xml'}" in capsys.readouterr().out
    assert not (out / ".coco.json.99").exists()
    api = COCO(out / "coco.json")
    names = sorted(image["file_name"] for image in api.loadImgs(api.getImgIds()))
    assert names == sorted(str(path.relative_to(folder)) for path in folder.rglob("aachen*.png"))
    for image in api.loadImgs(api.getImgIds()):
        ids = np.full((image["height"], image["width"]), 255)
        for annotation in api.loadAnns(api.getAnnIds(imgIds=[image["id"]])):
            ids[api.annToMask(annotation) > 0] = annotation["category_id"] - 1
        assert np.array_equal(ids, Image.open(out / "train_ids" / image["file_name"]))
    tree = ElementTree.parse(out / "cvat.xml").getroot()
    assert sorted(image.get("name", "") for image in tree.iter("image")) == names


def test_an_unknown_format_is_refused_before_anything_is_written(images, tmp_path: Path, capsys):
    words = ["predict", SOURCE_MODEL, images, tmp_path / "out", "--formats", "coco,yolo"]
    assert cli.main([*map(str, words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "yolo" in line
    with pytest.raises(ConfigError, match="formats contains 'yolo'"):
        predict(SOURCE_MODEL, images, tmp_path / "out", formats=["yolo"], progress=str)  # pyright: ignore
    assert not (tmp_path / "out").exists()
