"""A whole adaptation on two nodes that share no folder, with all its inputs and outputs in a bucket."""

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
from sfss_ray.pipeline import adapt
from sfss_ray.storage.files import read_torch
from sfss_ray.storage.object_cache import FOLDER_VARIABLE
from sfss_ray.storage.places import ObjectPath, Place, to_place

pytestmark = pytest.mark.ray


@pytest.fixture
def two_nodes(tmp_path, monkeypatch):
    """A head without CPUs and two nodes, each with a home, a working folder and copies of its own."""
    monkeypatch.setenv("RAY_ADDRESS", "")
    homes = [tmp_path / name for name in ("head", "first", "second")]
    for home in homes:
        (home / "work").mkdir(parents=True)
    # A cluster that ran before in this process may have made a token, which the nodes must know.
    token = {"RAY_AUTH_TOKEN_PATH": str(Path.home() / ".ray" / "auth_token")}
    variables = [
        {"HOME": str(home), FOLDER_VARIABLE: str(home / "copies")} | token for home in homes
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


def adapt_elsewhere(*inputs: Any, **options: Any) -> tuple[Place, float, list[str]]:
    """Adapt in a process of its own, since this one may be connected to another cluster.

    Returns:
        The student's place, its mIoU, and the progress lines.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(_adapt, *inputs, **options).result()


def _adapt(*inputs: Any, **options: Any) -> tuple[Place, float, list[str]]:
    lines: list[str] = []
    result = adapt(*inputs, **options, progress=lines.append)
    return result.student_path, result.metrics["adapted"]["miou"], lines


def test_two_nodes_without_a_shared_disk_adapt_as_one_with_a_disk(
    source_model,
    streets,
    tiny_config,
    bucket_address,  # noqa: F811
    two_nodes,
    tmp_path,
):
    bucket = to_place(bucket_address.format("run"))
    assert isinstance(bucket, ObjectPath)
    inputs = upload(streets, bucket / "streets")
    (bucket / "models" / "source.pt").write_bytes(source_model.read_bytes())
    address, homes = two_nodes
    settings = {"compute.num_workers": 2, "compute.mask_actors": 2, "compute.address": address}
    config = override(tiny_config, settings | {"masks.images_per_shard": 1})
    student, miou, lines = adapt_elsewhere(
        (bucket / "models" / "source.pt").address,
        (inputs / "target" / "images").address,
        (bucket / "out").address,
        val_images=(inputs / "val" / "images").address,
        val_labels=(inputs / "val" / "labels").address,
        config=config,
    )
    assert isinstance(student, ObjectPath)
    for home in homes:  # both nodes have worked, each with copies of its own
        assert any(file.suffix == ".png" for file in (home / "copies").rglob("*"))

    local_student, local_miou, _ = adapt_elsewhere(
        source_model,
        streets / "target" / "images",
        tmp_path / "out",
        val_images=streets / "val" / "images",
        val_labels=streets / "val" / "labels",
        config=config,
    )
    remote_state, state = (read_torch(file)["state_dict"] for file in (student, local_student))
    assert all(torch.equal(remote_state[name], state[name]) for name in state)
    assert miou == local_miou
    made, expected = MaskStore(bucket / "out" / "masks"), MaskStore(tmp_path / "out" / "masks")
    assert made.ids() == expected.ids()
    assert made.num_masks == expected.num_masks
    assert not any("secret" in line for line in lines)
    contents = {file.key: file.read_bytes() for file, _ in (bucket / "out").files()}
    assert [key for key, content in contents.items() if b"user:secret" in content] == []
