"""Masks on servers of S3 and Google Cloud Storage, and masks read without this package."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pandas
import pyarrow.fs
import pytest
from moto.server import ThreadedMotoServer

from sfss_ray.errors import DataError
from sfss_ray.masks.bank.schema import shard_name, write_shard
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.regions import region_records
from sfss_ray.storage import object_errors, places

RECIPE = {"source": "felzenszwalb", "sam_type": "", "knobs": {"felzenszwalb_scale": 300.0}}
GOOGLE_STORAGE = Path(__file__).resolve().parents[2] / "helpers" / "google_storage.py"
DOCS = Path(__file__).resolve().parents[3] / "docs" / "masks.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two shards of three images with four regions each; one image is unreadable."""
    folder = tmp_path_factory.mktemp("masks")
    for part in ("day", "dusk"):
        rows = [_row(f"{part}/{k}", seed=k) for k in range(3)]
        if part == "dusk":
            rows[2] |= {
                "height": 0,
                "width": 0,
                "masks": [],
                "error": "the file is empty (0 bytes)",
            }
        write_shard(folder / shard_name(r["image_id"] for r in rows), rows, RECIPE)
    return folder


def _row(image_id: str, seed: int) -> dict:
    ids = np.random.default_rng(seed).integers(1, 5, (6, 8)).repeat(5, 0).repeat(5, 1)
    row = {"image_id": image_id, "path": f"/images/{image_id}.png", "error": None}
    return row | {"height": 30, "width": 40, "masks": region_records(ids)}


@pytest.fixture(scope="module")
def s3_address(folder):
    """Address of a copy of the folder on a local S3 server."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    options = f"endpoint_override={host}:{port}&scheme=http"
    address = f"s3://user:secret@bank/city one/masks?{options}&allow_bucket_creation=true"
    filesystem, root = pyarrow.fs.FileSystem.from_uri(address.replace(" ", "%20"))
    filesystem.create_dir("bank", recursive=True)
    pyarrow.fs.copy_files(str(folder), root, destination_filesystem=filesystem)
    yield address.replace(" ", "%20")
    server.stop()


@pytest.fixture(scope="module")
def google_address(folder):
    """Address of the folder as a bucket on a local server of Google Cloud Storage."""
    command = [sys.executable, str(GOOGLE_STORAGE), str(folder.parent), "bank"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        options = f"endpoint_override=127.0.0.1:{int(server.stdout.readline())}&scheme=http"
        yield f"gs://anonymous@bank/{folder.name}?{options}"
        server.terminate()


@pytest.fixture(params=["s3", "google"])
def bucket(request) -> str:
    """Address of the folder on a server of either kind."""
    return request.getfixturevalue(f"{request.param}_address")


def _have_same_masks(store: MaskStore, local: MaskStore) -> bool:
    assert store.ids() == local.ids()
    assert store.errors == local.errors
    assert store.recipe == local.recipe
    assert store.num_masks == local.num_masks > 0
    window = (3, 4, 20, 30)
    return all(
        np.array_equal(store.id_map(i, part, painting), local.id_map(i, part, painting))
        for i in store.ids()
        if i not in store.errors
        for part in (None, window)
        for painting in ("fine", "coarse")
    )


def test_a_bucket_has_the_masks_of_the_folder(folder, bucket):
    assert _have_same_masks(MaskStore(bucket), MaskStore(folder))


def test_shards_of_a_bucket_are_listed_by_name_and_size(folder, bucket):
    assert MaskStore(bucket).remote_listing() == sorted(
        f"{path.name} {path.stat().st_size}" for path in folder.glob("*.parquet")
    )
    assert MaskStore(folder).remote_listing() == []
    assert MaskStore(bucket).local_shards() == []
    assert MaskStore(folder).local_shards() == sorted(folder.glob("*.parquet"))


def test_training_reads_a_bucket(folder, bucket, tmp_path):
    from PIL import Image

    from sfss_ray.config.train import AugmentConfig
    from sfss_ray.data.folders import list_images
    from sfss_ray.train.samples import TargetSamples

    for image_id in ("day/0", "day/1"):
        (tmp_path / image_id).parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{image_id}.png")
    images, augment = list_images(tmp_path), AugmentConfig(crop_size=(32, 48))
    remote, local = (TargetSamples(images, masks, augment, 0) for masks in (bucket, folder))
    for k in range(4):
        assert (remote[k]["mask_ids"] == local[k]["mask_ids"]).all()
        assert remote[k]["mask_ids"].unique().numel() > 1


def test_a_file_address_is_the_local_folder(folder):
    assert _have_same_masks(MaskStore(f"file://{folder}"), MaskStore(folder))


@pytest.mark.parametrize("address", ["s3x://bank/masks", "http://127.0.0.1/masks"])
def test_an_unknown_kind_of_address_is_refused(address):
    with pytest.raises(DataError, match="s3://, gs:// or file://"):
        MaskStore(address)


def test_a_missing_bucket_is_refused_without_its_password(bucket):
    with pytest.raises(DataError, match=r"masks.*//nobucket/") as error:
        MaskStore(bucket.replace("bank/", "nobucket/"))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_server_that_does_not_answer_is_reported(scheme, monkeypatch):
    """Google's client would retry for 15 minutes."""
    monkeypatch.setattr(places, "_GOOGLE_RETRY_SECONDS", 1)
    monkeypatch.setattr(object_errors, "RETRY_SECONDS", 1)
    with pytest.raises(DataError, match=r"cannot be reached.*credentials"):
        MaskStore(f"{scheme}://bank/masks?scheme=http&endpoint_override=127.0.0.1:9")


def _snippets(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(), re.DOTALL)


def test_the_documented_snippets_read_masks(folder, monkeypatch, capsys):
    """The snippets of docs/masks.md run in the parent of a folder called masks."""
    monkeypatch.chdir(folder.parent)
    folder.rename(folder.parent / "masks")
    try:
        snippets = _snippets("python")
        assert len(snippets) >= 4
        for snippet in snippets:
            exec(compile(snippet, str(DOCS), "exec"), {})
        printed = capsys.readouterr().out
        assert "dusk/2" in printed, "the image with an error is printed"
    finally:
        (folder.parent / "masks").rename(folder)


def test_duckdb_and_pandas_count_the_same_masks(folder):
    counts = duckdb.sql(
        f"select image_id, len(masks) as masks from '{folder}/*.parquet' order by image_id"
    ).fetchall()
    frame = pandas.read_parquet(folder).sort_values("image_id")
    assert counts == list(zip(frame["image_id"], frame["masks"].map(len), strict=True))
    assert sum(masks for _, masks in counts) == MaskStore(folder).num_masks
