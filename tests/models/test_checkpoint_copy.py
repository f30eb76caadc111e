"""Checkpoints in object storage as files on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from object_storage import bucket_address, s3_options  # noqa: F401

from sfss_ray.errors import CheckpointError
from sfss_ray.models.checkpoint_copy import checkpoint_on_disk
from sfss_ray.storage.object_cache import cache_folder
from sfss_ray.storage.places import ObjectPath, to_place


@pytest.fixture
def bucket(bucket_address) -> ObjectPath:  # noqa: F811
    location = to_place(bucket_address.format("models"))
    assert isinstance(location, ObjectPath)
    return location


def test_a_path_and_a_name_stay_as_they_are(tmp_path):
    for checkpoint in (tmp_path / "a.pt", "nvidia/segformer-b0"):
        with checkpoint_on_disk(checkpoint) as file:
            assert file == checkpoint


def test_an_object_comes_with_the_json_files_beside_it(bucket):
    for name in ("a.safetensors", "config.json", "other.bin"):
        (bucket / name).write_bytes(name.encode())
    with checkpoint_on_disk((bucket / "a.safetensors").address) as file:
        path = Path(file)
        assert path.read_bytes() == b"a.safetensors"
        assert sorted(p.name for p in path.parent.iterdir()) == ["a.safetensors", "config.json"]
    assert not path.exists()


def test_a_folder_comes_as_a_whole(bucket):
    for name in ("config.json", "model.safetensors", "deep/more.txt"):
        (bucket / "segformer" / name).write_bytes(name.encode())
    with checkpoint_on_disk(bucket / "segformer") as file:
        folder = Path(file)
        assert folder.name == "segformer"
        names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert names == {"config.json", "model.safetensors", "deep/more.txt"}
        for copy in cache_folder().glob("[0-9a-f][0-9a-f]/*"):
            copy.unlink()  # as another process that needs the space
        assert (folder / "config.json").read_bytes() == b"config.json"


def test_errors_name_the_address(bucket):
    (bucket / "bad.pt").write_bytes(b"bad")
    with (
        pytest.raises(CheckpointError, match=r"^source model 's3://fleet/\S*/bad.pt' is damaged$"),
        checkpoint_on_disk(bucket / "bad.pt") as file,
    ):
        raise CheckpointError(f"source model {str(file)!r} is damaged")
    with (
        pytest.raises(CheckpointError, match=r"'s3://fleet/\S*/none.pt' does not exist"),
        checkpoint_on_disk(bucket / "none.pt"),
    ):
        pass
    with (
        pytest.raises(CheckpointError, match=r"cannot be read \(there is no such bucket\)"),
        checkpoint_on_disk(bucket.address.replace("fleet", "nobucket")),
    ):
        pass
