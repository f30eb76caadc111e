"""The embedded default: its files, data and config."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from object_storage import bucket_address, s3_options  # noqa: F401

from sfss_ray.config import Config, flatten
from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.models.model_file import load_model
from sfss_ray.storage.files import write_text
from sfss_ray.streets import default
from sfss_ray.streets.scenes import render_scene


def test_shipped_files_exist():
    assert default.SOURCE_MODEL.is_file()
    facts = json.loads(default.SMALL_SAM_FACTS.read_text())
    assert facts["generator"]
    assert load_model(default.SOURCE_MODEL).classes == CITYSCAPES_19


def test_target_scenes_have_no_labels_and_both_sets_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(default, "TARGET_IMAGES", 2)
    monkeypatch.setattr(default, "VAL_IMAGES", 1)
    data = default.write_embedded_data(tmp_path)
    assert data.source_model == default.SOURCE_MODEL
    assert [path.name for path in sorted(data.target_images.iterdir())] == [
        "00000.png",
        "00001.png",
    ]
    assert not (tmp_path / "target" / "labels").exists()
    assert [path.name for path in data.val_labels.iterdir()] == ["00000.png"]
    val = cv2.imread(str(data.val_images / "00000.png"))[..., ::-1]
    assert np.array_equal(val, render_scene("camera", default.VAL_SEED, 0).image)
    assert not np.array_equal(val, cv2.imread(str(data.target_images / "00000.png"))[..., ::-1])


def test_existing_scenes_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(default, "TARGET_IMAGES", 1)
    monkeypatch.setattr(default, "VAL_IMAGES", 0)
    data = default.write_embedded_data(tmp_path)
    (data.target_images / "00000.png").write_bytes(b"kept")
    assert default.write_embedded_data(tmp_path) == data
    assert (data.target_images / "00000.png").read_bytes() == b"kept"


def test_the_config_uses_the_small_sam_with_its_own_settings():
    options = flatten(default.embedded_config())
    generator = json.loads(default.SMALL_SAM_FACTS.read_text())["generator"]
    assert options["masks.regions"] == "small_sam"
    for name, value in generator.items():
        assert options[f"masks.{name}"] == pytest.approx(value)
    changed = {name for name, value in flatten(Config()).items() if options[name] != value}
    assert {"train.num_steps", "train.evaluate_every", "tune.num_trials"} <= changed


def test_scenes_at_an_address_are_those_of_a_folder(
    tmp_path,
    monkeypatch,
    bucket_address,  # noqa: F811
):
    monkeypatch.setattr(default, "TARGET_IMAGES", 2)
    monkeypatch.setattr(default, "VAL_IMAGES", 1)
    local = default.write_embedded_data(tmp_path)
    data = default.write_embedded_data(bucket_address.format("data"))
    for one, other in (
        (local.target_images, data.target_images),
        (local.val_labels, data.val_labels),
    ):
        contents = [
            {file.name: file.read_bytes() for file in root.iterdir()} for root in (one, other)
        ]
        assert contents[0] == contents[1]
    write_text(data.target_images / "00000.png", "kept")
    assert default.write_embedded_data(bucket_address.format("data")) == data
    assert (data.target_images / "00000.png").read_text() == "kept"
