"""Inputs at addresses: images, labels, checkpoints and masks on an S3 server, beside a disk."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from mask_runs import put_noise, run_pools_in_process
from object_storage import BUCKET, FailingStorage, bucket_address, s3_options, upload  # noqa: F401
from PIL import Image

from sfss_ray import cli
from sfss_ray.config import Config, override
from sfss_ray.data.class_sets import CAMVID_11
from sfss_ray.data.content import Content, changed_files, read_contents, read_with_content
from sfss_ray.data.decoding import image_size, read_image
from sfss_ray.data.folders import list_images
from sfss_ray.data.labelled import load_labelled
from sfss_ray.errors import CheckpointError, DataError, ResumeError
from sfss_ray.evaluation.scoring import evaluate_model
from sfss_ray.inspection.source_model import verify_source
from sfss_ray.masks.bank.claims import claim_folder, is_claimed_by
from sfss_ray.masks.bank.schema import write_shard
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.existing import open_masks
from sfss_ray.masks.generate import generate_masks
from sfss_ray.models.source import open_source
from sfss_ray.prediction.folder import predict
from sfss_ray.runtime import run_claim
from sfss_ray.runtime.crash_guard import CRASH_REASON
from sfss_ray.storage import object_errors
from sfss_ray.storage.object_cache import FOLDER_VARIABLE
from sfss_ray.storage.places import ObjectPath, address_of, from_text, to_place, to_text
from sfss_ray.streets.default import SOURCE_MODEL
from sfss_ray.streets.scenes import write_streets

CPU = override(Config(), {"compute.device": "cpu"})


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    run_pools_in_process(monkeypatch)
    monkeypatch.setattr(run_claim, "_SETTLE_SECONDS", 0.05)


@pytest.fixture
def images(tmp_path):
    folder = put_noise(tmp_path / "images", "a.png", "b.png", "c.png")
    (folder / "day").mkdir()
    (folder / "b.png").rename(folder / "day" / "b.png")
    return folder


@pytest.fixture
def bucket(bucket_address) -> ObjectPath:  # noqa: F811
    location = to_place(bucket_address.format("data"))
    assert isinstance(location, ObjectPath)
    return location


def test_images_at_an_address_are_those_of_the_folder(images, bucket):
    (images / "notes.svg").write_text("no image")
    (images / ".hidden.png").write_bytes(b"")
    remote_notes, notes = [], []
    remote = list_images(upload(images, bucket / "images"), notes=remote_notes.append)
    local = list_images(images, notes=notes.append)
    assert [file.image_id for file in remote] == [file.image_id for file in local]
    assert remote_notes == notes
    for one, other in zip(remote, local, strict=True):
        assert (one.read() == other.read()).all()
        assert image_size(one.path) == image_size(other.path)
    assert "secret" not in " ".join(str(file.path) for file in remote)


def test_a_listed_place_travels_as_text(images, bucket):
    file = list_images(upload(images, bucket / "images"))[0]
    copy = from_text(to_text(file.path))
    assert copy == file.path
    assert isinstance(copy, ObjectPath)
    assert copy.listed == file.path.listed
    assert from_text(to_text(images)) == images


def test_errors_of_addresses_are_one_line(images, bucket, monkeypatch):
    address = bucket.address
    with pytest.raises(
        DataError, match=r"target images: no object lies below 's3://fleet/.*/none'"
    ):
        list_images(bucket / "none")
    with pytest.raises(DataError, match=r"cannot be reached \(there is no such bucket\)"):
        list_images(address.replace("fleet/", "nobucket/"))
    (bucket / "images.png").write_bytes(b"x")
    with pytest.raises(DataError, match="is an object; give the address above it"):
        list_images(bucket / "images.png")
    with pytest.raises(DataError, match=r"unknown kind of address.*s3://, gs:// or file://"):
        list_images("s3x://bucket/images")
    monkeypatch.setattr(object_errors, "RETRY_SECONDS", 1.0)
    unused = "s3://user:secret@fleet/x?endpoint_override=127.0.0.1:9&scheme=http"
    with pytest.raises(
        DataError, match=r"'s3://fleet/x' cannot be reached \(it did not answer"
    ) as e:
        list_images(unused)
    assert "secret" not in str(e.value)
    assert len(str(e.value).splitlines()) == 1


def test_contents_of_objects(images, bucket):
    files = {f.image_id: f.path for f in list_images(upload(images, bucket / "images"))}
    recorded = {name: read_with_content(path)[1] for name, path in files.items()}
    local = Content.of_file(images / "a.png")
    assert recorded["a"].sha256 == local.sha256
    assert changed_files(files, recorded) == []
    manifest = read_contents(files, {})
    assert manifest["a"].sha256.startswith("object ")
    time.sleep(1.1)  # an S3 server stores times in seconds
    files["a"].write_bytes(put_noise(images, "d.png", seed=1).joinpath("d.png").read_bytes())
    listed = {f.image_id: f.path for f in list_images(bucket / "images")}

    assert changed_files(listed, recorded) == ["a"]
    assert [n for n, c in read_contents(listed, manifest).items() if c != manifest[n]] == ["a"]


def test_labels_at_an_address_are_those_of_the_folder(images, tmp_path, bucket):
    labels = tmp_path / "labels"
    for file in list_images(images):
        size = image_size(file.path)
        ids = np.random.default_rng(0).integers(0, 11, size).astype(np.uint8)
        (labels / file.image_id).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(labels / f"{file.image_id}.png")
    remote_labels = upload(labels, bucket / "labels")
    local = load_labelled(images, labels, CAMVID_11)
    mixed = load_labelled(images, address_of(remote_labels), CAMVID_11)
    both = load_labelled(upload(images, bucket / "images"), remote_labels, CAMVID_11)
    for folder in (mixed, both):
        assert (folder.format, folder.notes) == (local.format, local.notes)
        for one, other in zip(folder.pairs, local.pairs, strict=True):
            assert (one.labels() == other.labels()).all()


def test_masks_at_an_address_are_those_of_a_folder(images, bucket, tmp_path):
    remote, lines = upload(images, bucket / "images"), []
    summary = generate_masks(remote.address, (bucket / "masks").address, progress=lines.append)
    local = generate_masks(images, tmp_path / "masks", progress=str)
    assert (summary.images, summary.masks, summary.errors) == (3, local.masks, {})
    assert str(summary.folder) == str(bucket / "masks")
    here, there = MaskStore(tmp_path / "masks"), MaskStore(bucket / "masks")
    for image_id in ("a", "c", "day/b"):
        assert (here.id_map(image_id) == there.id_map(image_id)).all()
        row = there.load(image_id)
        assert row["path"] == str(remote / f"{image_id}.png")
        assert str(row["masks"]) == str(here.load(image_id)["masks"])  # NaN differs from itself
    names = sorted(file.name for file, _ in (bucket / "masks").files())
    assert names == sorted(file.name for file in (tmp_path / "masks").glob("masks-*"))
    contents = b"".join(file.read_bytes() for file, _ in (bucket / "masks").files())
    assert b"secret" not in contents
    assert not any("secret" in line for line in lines)
    assert open_masks(bucket / "masks", list_images(remote)).errors == {}


def test_a_run_at_an_address_resumes_and_makes_changed_images_again(images, bucket):
    remote, masks = upload(images, bucket / "images"), bucket / "masks"
    generate_masks(remote, masks, progress=str)
    assert generate_masks(remote, masks, progress=str).made == 0
    put_noise(images, "d.png", seed=1)
    time.sleep(1.1)  # an S3 server stores times in seconds
    (remote / "d.png").write_bytes((images / "d.png").read_bytes())
    (remote / "a.png").write_bytes((images / "d.png").read_bytes())
    lines: list[str] = []
    assert generate_masks(remote, masks, progress=lines.append).made == 2
    assert any("(1 changed since their masks were made)" in line for line in lines)
    ids = [i for f, _ in masks.files() for i in pq.read_table(_opened(f))["image_id"].to_pylist()]
    assert sorted(ids) == ["a", "c", "d", "day/b"]


def _opened(file: ObjectPath):
    return file.open_input()


def test_an_image_that_cannot_be_read_has_its_reason(images, bucket):
    (images / "e.png").write_bytes(b"")
    remote = upload(images, bucket / "images")
    summary = generate_masks(remote, bucket / "masks", progress=str)
    assert summary.errors == {"e": "the file is empty (0 bytes)"}


def test_two_drivers_never_write_masks_at_one_address(bucket):
    with claim_folder(bucket / "masks") as claim:
        assert is_claimed_by(bucket / "masks", claim)
        assert not is_claimed_by(bucket / "masks", "another")
        write_shard(bucket / "masks" / "masks-0123456789abcdef.parquet", [], {}, lambda: False)
        assert list((bucket / "masks").glob("*.parquet")) == []
    assert not is_claimed_by(bucket / "masks", claim), (
        "an actor that outlives its run writes nothing"
    )


def test_a_second_driver_is_refused(images, bucket, monkeypatch):
    monkeypatch.setattr(run_claim, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(run_claim, "_LEFT_AFTER", 3.0)
    with claim_folder(bucket / "masks"), pytest.raises(ResumeError, match="another run writes to"):
        generate_masks(images, bucket / "masks", progress=str)


def test_an_image_that_kills_its_process_is_given_up_at_an_address(images, bucket):
    from sfss_ray.runtime.crash_guard import MAX_CRASHES, Attempts, forget_crashes

    for _ in range(MAX_CRASHES):  # each process dies before its `end`
        assert Attempts(bucket / "masks", ["a", "b"]).begin("a")
    attempts = Attempts(bucket / "masks", ["a", "b"])
    assert not attempts.begin("a")
    assert attempts.begin("b")
    forget_crashes(bucket / "masks")
    assert list((bucket / "masks").iterdir()) == []
    assert str(MAX_CRASHES) in CRASH_REASON


def test_the_command_line_takes_addresses(images, bucket, capsys):
    remote = upload(images, bucket / "images")
    assert (
        cli.main(
            ["masks", "--target-images", remote.address, "--output-dir", (bucket / "masks").address]
        )
        == 0
    )
    output = capsys.readouterr()
    assert "secret" not in output.out + output.err
    assert sorted(MaskStore(bucket / "masks").ids()) == ["a", "c", "day/b"]


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """Three drawn streets with labels."""
    root = tmp_path_factory.mktemp("streets")
    write_streets(root, "camera", 3, 3, (64, 128))
    return root


def test_predictions_at_an_address_are_those_of_a_folder(streets, bucket, tmp_path):
    remote, out = upload(streets / "images", bucket / "images"), bucket / "out"
    result = predict(SOURCE_MODEL, remote, out, formats=["coco"], config=CPU, progress=str)
    local = predict(SOURCE_MODEL, streets / "images", tmp_path / "out", config=CPU, progress=str)
    assert (result.images, result.made, result.kinds) == (3, 3, local.kinds)
    for file in (tmp_path / "out").rglob("*.png"):
        name = file.relative_to(tmp_path / "out").as_posix()
        assert (read_image(file) == read_image(out / name)).all()
    assert len(json.loads((out / "coco.json").read_text())["images"]) == 3
    assert predict(SOURCE_MODEL, remote, out, config=CPU, progress=str).made == 0
    ids = [file.image_id for file in list_images(remote)]
    (out / "train_ids" / f"{ids[0]}.png").unlink()
    assert predict(SOURCE_MODEL, remote, out, config=CPU, progress=str).made == 1
    with pytest.raises(DataError, match="lies in the folder of images"):
        predict(SOURCE_MODEL, remote, remote / "out", config=CPU, progress=str)


def test_a_model_and_labels_at_addresses_score_the_same(streets, bucket):
    (bucket / "models" / "source.pt").write_bytes(SOURCE_MODEL.read_bytes())
    remote = upload(streets, bucket / "streets")
    model = (bucket / "models" / "source.pt").address
    inputs = {"config": CPU, "progress": str}
    score = evaluate_model(
        model, remote / "images", remote / "labels", output_dir=bucket / "score", **inputs
    )
    local = evaluate_model(SOURCE_MODEL, streets / "images", streets / "labels", **inputs)
    assert score.miou == local.miou
    record = (bucket / "score" / "evaluation.json").read_text()
    assert json.loads(record)["miou"] == pytest.approx(local.miou)
    assert "secret" not in record
    found = verify_source(model, remote / "images", remote / "labels", **inputs)
    assert found.miou == pytest.approx(local.miou)


def test_an_export_of_a_model_at_an_address(bucket, tmp_path):
    (bucket / "source.pt").write_bytes(SOURCE_MODEL.read_bytes())
    (bucket / "card.json").write_bytes(b'{"channel_order": "bgr"}')
    source = open_source(bucket / "source.pt", card=bucket / "card.json")
    assert source.card.channel_order == "bgr"
    assert source.label == "source"
    assert source.sha256 == open_source(SOURCE_MODEL).sha256
    with pytest.raises(
        CheckpointError, match=r"source model 's3://fleet/.*/none.pt' does not exist"
    ):
        open_source(bucket / "none.pt")
    (bucket / "bad.pt").write_bytes(b"bad")
    with pytest.raises(
        CheckpointError, match=r"source model 's3://fleet/.*/bad.pt' cannot be read"
    ):
        open_source(bucket / "bad.pt")


@pytest.fixture
def storage():
    """An S3 server that can be away, with a bucket."""
    server = FailingStorage()
    server.create_bucket()
    yield server
    server.close()


def test_masks_go_on_after_storage_that_was_away(images, storage, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "object cache"))
    bucket = to_place(f"s3://user:secret@{BUCKET}/run?{storage.options}")
    assert isinstance(bucket, ObjectPath)
    remote, absences = upload(images, bucket / "images"), []

    def lose_storage(line: str) -> None:
        if line.startswith("masks by"):  # images are listed, and none is read
            storage.is_away = True
            timer = threading.Timer(8.0, lambda: setattr(storage, "is_away", False))
            timer.start()  # longer than the retries of Arrow itself
            absences.append(timer)

    summary = generate_masks(remote, bucket / "masks", progress=lose_storage)
    assert (len(absences), summary.made, summary.errors) == (1, 3, {})
    local = generate_masks(images, tmp_path / "masks", progress=str)
    assert summary.masks == local.masks


def test_storage_that_stays_away_ends_a_run_in_one_line(images, storage, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "object cache"))
    monkeypatch.setattr(object_errors, "RETRY_SECONDS", 1.0)
    bucket = to_place(f"s3://user:secret@{BUCKET}/run?{storage.options}")
    assert isinstance(bucket, ObjectPath)
    remote = upload(images, bucket / "images")
    storage.is_away = True
    with pytest.raises(
        DataError, match=r"'s3://fleet/run/images' cannot be reached \(it did not"
    ) as e:
        generate_masks(remote, bucket / "masks", progress=str)
    assert "secret" not in str(e.value)
