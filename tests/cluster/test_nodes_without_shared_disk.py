"""A whole adaptation and a whole search on two nodes that share no folder, with all their inputs and
outputs in a bucket."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_cluster import start_cluster
from object_storage import bucket_address, s3_options, upload  # noqa: F401

from sfss_ray.config import override
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.sam.networks import shipped_small_sam
from sfss_ray.pipeline import adapt, tune_hyperparameters
from sfss_ray.storage.files import read_torch
from sfss_ray.storage.object_cache import FOLDER_VARIABLE
from sfss_ray.storage.places import ObjectPath, Place, to_place

pytestmark = pytest.mark.ray
PASSWORD = "known to the machines alone"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "user", "AWS_SECRET_ACCESS_KEY": PASSWORD}
SETTINGS = {
    "compute.mask_actors": 2,
    "masks.regions": "sam",
    "masks.points_per_side": 4,
    "masks.pred_iou_thresh": 0.0,
    "masks.stability_score_thresh": 0.2,
    "masks.images_per_shard": 1,
}
STAGES = {
    "adapt": (adapt, {"compute.num_workers": 2}),
    "tune": (
        tune_hyperparameters,
        {
            "tune.num_trials": 2,
            "compute.concurrent_trials": 2,
            "evaluation.held_out_share": 0.3,
            "train.optim.learning_rate": 1e-6,  # no trial may collapse
        },
    ),
}


@pytest.fixture
def two_nodes(tmp_path, monkeypatch):
    """A head without CPUs and two nodes, each with a home, a working folder and copies of its own."""
    monkeypatch.setenv("RAY_ADDRESS", "")
    homes = [tmp_path / name for name in ("head", "first", "second")]
    for home in homes:
        (home / "work").mkdir(parents=True)
    # A cluster that ran before in this process may have made a token, which the nodes must know.
    token = {"RAY_AUTH_TOKEN_PATH": str(Path.home() / ".ray" / "auth_token")}
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    variables = [
        {"HOME": str(home), FOLDER_VARIABLE: str(home / "copies")} | token | CREDENTIALS
        for home in homes
    ]
    monkeypatch.chdir(homes[0] / "work")
    cluster = start_cluster({"num_cpus": 0, "env_vars": variables[0]})
    for home, environment in zip(homes[1:], variables[1:], strict=True):
        monkeypatch.chdir(home / "work")
        cluster.add_node(num_cpus=1, env_vars=environment)
    monkeypatch.chdir(homes[0] / "work")
    yield cluster.address, homes[1:]
    cluster.shutdown()
    os.environ.pop("RAY_ADDRESS", None)


def run_elsewhere(stage: str, *inputs: Any, **options: Any) -> tuple[Place, dict, list[str]]:
    """Run a stage in a process of its own, since this one may be connected to another cluster.

    Returns:
        The student's place, what the report says of it, and the progress lines.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(_run, stage, *inputs, **options).result()


def _run(stage: str, *inputs: Any, **options: Any) -> tuple[Place, dict, list[str]]:
    lines: list[str] = []
    result = STAGES[stage][0](*inputs, **options, progress=lines.append)
    facts = {"miou": result.metrics["adapted"]["miou"]}
    if stage == "tune":
        facts |= {"best": result.best_config}
        facts |= {"trials": [(trial.values, trial.score) for trial in result.search.trials]}
    return result.student_path, facts, lines


@pytest.mark.parametrize("stage", STAGES)
def test_two_nodes_without_a_shared_disk_work_as_one_with_a_disk(
    stage,
    source_model,
    streets,
    tiny_config,
    bucket_address,  # noqa: F811
    two_nodes,
    tmp_path,
):
    bucket = to_place(bucket_address.format("run").replace("user:secret@", ""))
    assert isinstance(bucket, ObjectPath)
    inputs = upload(streets, bucket / "streets")
    for name, weights in (("source.pt", source_model), ("sam.pt", shipped_small_sam())):
        (bucket / "models" / name).write_bytes(weights.read_bytes())
    address, homes = two_nodes
    settings = SETTINGS | STAGES[stage][1] | {"compute.address": address}
    config = override(tiny_config, settings)
    student, facts, lines = run_elsewhere(
        stage,
        (bucket / "models" / "source.pt").address,
        (inputs / "target" / "images").address,
        (bucket / "out").address,
        sam_checkpoint=(bucket / "models" / "sam.pt").address,
        val_images=(inputs / "val" / "images").address,
        val_labels=(inputs / "val" / "labels").address,
        config=config,
    )
    assert isinstance(student, ObjectPath)
    for home in homes:  # both nodes have worked, each with copies of its own
        assert any(file.suffix == ".png" for file in (home / "copies").rglob("*"))

    local_student, local_facts, _ = run_elsewhere(
        stage,
        source_model,
        streets / "target" / "images",
        tmp_path / "out",
        sam_checkpoint=shipped_small_sam(),
        val_images=streets / "val" / "images",
        val_labels=streets / "val" / "labels",
        config=config,
    )
    remote_state, state = (read_torch(file)["state_dict"] for file in (student, local_student))
    assert all(torch.equal(remote_state[name], state[name]) for name in state)
    assert facts == local_facts
    made, expected = MaskStore(bucket / "out" / "masks"), MaskStore(tmp_path / "out" / "masks")
    assert made.ids() == expected.ids()
    assert made.num_masks == expected.num_masks > 0
    assert not any(PASSWORD in line for line in lines)
    contents = {file.key: file.read_bytes() for file, _ in (bucket / "out").files()}
    assert [key for key, content in contents.items() if PASSWORD.encode() in content] == []
