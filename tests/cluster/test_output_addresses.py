"""Whole runs whose output is at an address, on an S3 server on this machine."""

from __future__ import annotations

import pytest
import torch
from object_storage import bucket_address, s3_options  # noqa: F401

from sfss_ray.config import override
from sfss_ray.errors import ResumeError
from sfss_ray.masks.generate import generate_masks
from sfss_ray.pipeline import adapt, tune_hyperparameters
from sfss_ray.storage.files import read_torch
from sfss_ray.storage.places import ObjectPath, to_place
from sfss_ray.train.launch import train_student
from sfss_ray.train.run_state import load_state, read_progress

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_cluster")]


@pytest.fixture(scope="module")
def masks(streets, tiny_config, shared_cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    generate_masks(streets / "target" / "images", folder, config=tiny_config, progress=str)
    return folder


def same_weights(one, other) -> bool:
    first, second = (read_torch(path)["state_dict"] for path in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def assert_no_secret(folder: ObjectPath) -> None:
    """No object below the address contains the secret of the address."""
    contents = {file.key: file.read_bytes() for file, _ in folder.files()}
    assert contents
    assert [key for key, content in contents.items() if b"secret" in content] == []


def test_a_training_at_an_address_ends_as_in_a_folder(
    source_model,
    streets,
    masks,
    tiny_config,
    bucket_address,  # noqa: F811
    tmp_path,
):
    target, lines = streets / "target" / "images", []
    folder = to_place(bucket_address.format("run"))
    assert isinstance(folder, ObjectPath)
    inputs = (source_model, target, masks)
    local = train_student(*inputs, tmp_path / "run", config=tiny_config, progress=str)
    result = train_student(
        *inputs, bucket_address.format("run"), config=tiny_config, progress=lines.append
    )
    assert same_weights(result.model, local.model)
    assert result.curve == local.curve
    assert {line.partition(" (")[0] for line in lines} >= {"train 3/6", "train 6/6"}
    assert str(result.model).endswith("/run/student.pt")
    assert "secret" not in str(result)

    names = {file.key.partition("/run/")[2] for file, _ in folder.files()}
    assert {"config.json", "inputs.parquet", "student.pt", "train/teacher.pt"} <= names
    checkpoints = sorted({name for name in names if name.endswith("/state.pt")})
    assert len(checkpoints) == 2
    assert load_state((folder / checkpoints[-1]).parent)["step"] == 6
    assert [record["step"] for record in read_progress(folder / "train")][-2:] == [3, 6]
    assert_no_secret(folder)

    written = (folder / "student.pt").stat()
    again = train_student(*inputs, folder, config=tiny_config, progress=str)
    assert again.curve == result.curve
    assert (folder / "student.pt").stat() == written
    other = override(tiny_config, {"seed": 1})
    with pytest.raises(ResumeError, match=r"/run' holds another run \(seed: 0 -> 1\)"):
        train_student(*inputs, folder, config=other, progress=str)


def test_an_adaptation_reports_at_its_address(
    source_model,
    streets,
    masks,
    tiny_config,
    bucket_address,  # noqa: F811
    tmp_path,
):
    folder = to_place(bucket_address.format("run"))
    assert isinstance(folder, ObjectPath)
    inputs = {
        "masks": masks,
        "config": tiny_config,
        "progress": str,
        "val_images": streets / "val" / "images",
        "val_labels": streets / "val" / "labels",
    }
    target = streets / "target" / "images"
    result = adapt(source_model, target, folder, trackers=("tensorboard",), **inputs)
    local = adapt(source_model, target, tmp_path / "run", **inputs)
    assert same_weights(result.student_path, local.student_path)
    assert result.metrics["adapted"]["miou"] == local.metrics["adapted"]["miou"]
    assert result.student.classes == local.student.classes
    assert result.report_html.read_text().startswith("<!DOCTYPE html>")
    pictures = {path.name for path in (folder / "pictures").glob("*.png")}
    assert pictures == {path.name for path in (tmp_path / "run" / "pictures").glob("*.png")}
    events = list((folder / "tracking" / "tensorboard").iterdir())
    assert any("events.out" in file.name for file in events)
    assert_no_secret(folder)


def test_a_search_at_an_address_ends_as_in_a_folder(
    source_model,
    streets,
    masks,
    tiny_config,
    bucket_address,  # noqa: F811
    tmp_path,
):
    folder = to_place(bucket_address.format("run"))
    assert isinstance(folder, ObjectPath)
    config = override(tiny_config, {"tune.num_trials": 2, "evaluation.held_out_share": 0.3})
    inputs = {"masks": masks, "config": config, "progress": str}
    target = streets / "target" / "images"
    result = tune_hyperparameters(source_model, target, folder, **inputs)
    local = tune_hyperparameters(source_model, target, tmp_path / "run", **inputs)
    assert same_weights(result.student_path, local.student_path)
    assert result.best_config == local.best_config
    names = {file.key.partition("/run/")[2] for file, _ in folder.files()}
    assert {"best_config.json", "trials/results.json", "trials/ray/search/tuner.pkl"} <= names
    for trial in result.search.trials:
        assert {(trial.folder / name).is_file() for name in ("state.pt", "values.json")} == {True}
    assert_no_secret(folder)
    again = tune_hyperparameters(source_model, target, folder, **inputs)
    assert [trial.folder for trial in again.search.trials] == [
        trial.folder for trial in result.search.trials
    ]
