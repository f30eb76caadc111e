"""Whole runs whose output is at an address, on an S3 server on this machine."""

from __future__ import annotations

import pytest
import torch
from object_storage import bucket_address, s3_options  # noqa: F401

from sfss_ray.config import override
from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.errors import DataError, ResumeError
from sfss_ray.masks.generate import generate_masks
from sfss_ray.pipeline import adapt, tune_hyperparameters
from sfss_ray.storage.files import read_torch
from sfss_ray.storage.places import ObjectPath, to_place
from sfss_ray.streets.default import SOURCE_MODEL
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
    assert {line[:9] for line in lines} >= {"train 3/6", "train 6/6"}
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
    result = adapt(source_model, target, folder, **inputs)
    assert result.metrics["adapted"]["miou"] is not None
    assert result.student.classes == CITYSCAPES_19
    assert result.report_html.read_text().startswith("<!doctype html>")
    assert len(list((folder / "pictures").glob("*.png"))) == 2
    assert_no_secret(folder)


def test_a_search_at_an_address_is_kept_there(
    streets,
    masks,
    tiny_config,
    bucket_address,  # noqa: F811
):
    folder = to_place(bucket_address.format("run").replace("user:secret@", ""))
    assert isinstance(folder, ObjectPath)
    config = override(
        tiny_config,
        {
            "tune.num_trials": 2,
            "compute.concurrent_trials": 1,
            "evaluation.held_out_share": 0.3,
        },
    )
    inputs = {"masks": masks, "config": config, "progress": str}
    target = streets / "target" / "images"
    with pytest.raises(DataError, match="password, which Ray Tune would store"):
        tune_hyperparameters(SOURCE_MODEL, target, bucket_address.format("run"), **inputs)
    result = tune_hyperparameters(SOURCE_MODEL, target, folder, **inputs)
    names = {file.key.partition("/run/")[2] for file, _ in folder.files()}
    assert {"best_config.json", "trials/results.json", "trials/ray/search/tuner.pkl"} <= names
    for trial in result.search.trials:
        assert {(trial.folder / name).is_file() for name in ("state.pt", "values.json")} == {True}
    again = tune_hyperparameters(SOURCE_MODEL, target, folder, **inputs)
    assert [trial.folder for trial in again.search.trials] == [
        trial.folder for trial in result.search.trials
    ]


def test_a_weak_trial_of_two_workers_ends_early_and_frees_its_cpus(
    streets,
    masks,
    tiny_config,
    tmp_path,
):
    """The training after it needs all CPUs of the cluster, and gets them."""
    knobs = {
        "tune.num_trials": 2,
        "tune.reduction_factor": 2,
        "tune.space": ["train.optim.learning_rate=0.0001,0.01"],
        "train.loss.ramp": [0.0, 0.1],
        "train.num_steps": 30,
        "train.evaluate_every": 1,
        "compute.num_workers": 2,
        "compute.cpus_per_worker": 0.99,
        "compute.concurrent_trials": 1,
        "evaluation.held_out_share": 0.3,
        "evaluation.pictures": 0,
    }
    result = tune_hyperparameters(
        SOURCE_MODEL,
        streets / "target" / "images",
        tmp_path / "run",
        masks=masks,
        config=override(tiny_config, knobs),
        progress=str,
    )
    trials = result.search.trials
    assert [trial.status for trial in trials] == ["finished", "stopped early"]
    assert read_progress(trials[1].folder / "train")[-1]["step"] < 30
    assert result.student_path.is_file()
