"""Records of runs: what is compared when a folder is resumed, and what is refused."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from street_requests import CPU, request_for

import sfss_ray
from sfss_ray.config import Config, override
from sfss_ray.data.content import read_manifest
from sfss_ray.data.folders import ImageFile
from sfss_ray.errors import DataError, ResumeError
from sfss_ray.inputs.check import check_inputs
from sfss_ray.inputs.record import (
    MANIFEST_FILE,
    claim_inputs,
    claim_run,
    hash_of_ids,
    input_files,
    run_record,
    unchanged_contents,
)
from sfss_ray.inputs.request import Request


def test_the_hash_of_ids_does_not_depend_on_their_order():
    images = [ImageFile(name, Path(name)) for name in ("b", "a", "c/d")]
    assert hash_of_ids(images) == hash_of_ids(images[::-1])
    assert hash_of_ids(images) == hashlib.sha256(b"a\nb\nc/d").hexdigest()
    assert hash_of_ids(images[:2]) != hash_of_ids(images)


def test_a_record_holds_what_decides_the_result_and_no_more(streets, tmp_path: Path):
    def record_of(knobs: dict, **changes) -> dict:
        request = request_for(streets, tmp_path / "out", knobs, **changes)
        return run_record(request, check_inputs(request))

    record = record_of({})
    assert record["kind"] == "adapt"
    assert (record["inputs.images"], record["inputs.labelled_images"]) == (6, 2)
    assert record["inputs.sam_sha256"] == ""
    assert not any(name.startswith("compute.") for name in record)
    assert record_of({"compute.loader_processes": 1}) == record
    assert record_of({"seed": 1}) == record | {"seed": 1}
    sam = record_of({}, sam_checkpoint=streets / "sam.pth")
    expected = hashlib.sha256((streets / "sam.pth").read_bytes()).hexdigest()
    assert sam["inputs.sam_sha256"] == expected


def test_input_files_have_names_that_survive_moved_folders(streets, tmp_path: Path):
    files = input_files(check_inputs(request_for(streets, tmp_path / "out")))
    assert len(files) == 6 + 2 + 2
    assert files["target images/00003"] == streets / "target" / "images" / "00003.png"
    assert files["val labels/00001"] == streets / "val" / "labels" / "00001.png"


def test_the_first_replaced_file_is_named(tmp_path: Path):
    files = {}
    for name in ("a", "b", "c"):
        files[name] = tmp_path / name
        files[name].write_text(name)
    run = claim_run(tmp_path / "run", {"seed": 0}, files)
    assert set(unchanged_contents(run, files)) == {"a", "b", "c"}
    files["b"].write_text("another")
    files["c"].write_text("another")
    with pytest.raises(ResumeError, match=r"2 of 3 input files were changed .*\(first: 'b'\)"):
        claim_run(tmp_path / "run", {"seed": 0}, files)
    with pytest.raises(ResumeError, match=r"holds another run \(seed: 0 -> 1\)"):
        claim_run(tmp_path / "run", {"seed": 1}, files)
    assert not (tmp_path / "other").exists()
    claim_run(tmp_path / "other", {"seed": 1}, files)


def test_a_run_is_resumed_only_with_unchanged_files(streets, tmp_path: Path):
    for part in ("target", "val"):
        shutil.copytree(streets / part, tmp_path / part)
    out = tmp_path / "out"

    def claim(root: Path = tmp_path) -> Path:
        request = request_for(root, out)
        return claim_inputs(request, check_inputs(request), str)

    claim()
    assert (out / MANIFEST_FILE).exists()
    moved = tmp_path / "moved"
    for part in ("target", "val"):
        shutil.copytree(tmp_path / part, moved / part, copy_function=shutil.copyfile)
    os.utime(moved / "target" / "images" / "00001.png", ns=(1, 1))
    claim(moved)
    former_manifest = Path(shutil.copy(out / MANIFEST_FILE, tmp_path / "former.parquet"))
    for name in ("target/images/00002.png", "val/labels/00001.png", "val/images/00000.png"):
        path = tmp_path / name
        former = path.read_bytes()
        shape = np.asarray(Image.open(path)).shape
        Image.fromarray(np.zeros(shape, np.uint8)).save(path)
        input_name = f"{name.split('/')[0]} {name.split('/')[1]}/{path.stem}"
        with pytest.raises(
            ResumeError, match=rf"1 of 10 input files were changed .*'{input_name}'"
        ):
            claim()
        path.write_bytes(former)
    claim()
    assert hashes_in(out / MANIFEST_FILE) == hashes_in(former_manifest)


def hashes_in(manifest: Path) -> dict[str, str]:
    """SHA-256 by name of a manifest."""
    contents = read_manifest(manifest)
    assert contents
    return {name: content.sha256 for name, content in contents.items()}


def test_a_pretraining_is_not_resumed_with_replaced_labels(streets, tmp_path: Path, monkeypatch):
    """It stops before its first step, and then a label map is replaced under its name."""
    shutil.copytree(streets / "val", tmp_path / "day")
    images, labels = tmp_path / "day" / "images", tmp_path / "day" / "labels"

    def stop(*_, **__) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sfss_ray.train.launch.fit", stop)
    config = override(Config(), CPU | {"pretrain.batch_size": 2})

    def pretrain() -> None:
        sfss_ray.pretrain_source(images, labels, tmp_path / "out", config=config, progress=str)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            pretrain()
    path = labels / "00001.png"
    Image.fromarray(np.zeros((64, 128), np.uint8)).save(path)
    with pytest.raises(ResumeError, match=r"1 of 4 input files .*'training labels/00001'"):
        pretrain()


def test_a_run_is_resumed_only_with_the_same_class_groups(streets, tmp_path: Path):
    def request_with(class_groups) -> Request:
        labels = {"val_images": None, "val_labels": None}
        return request_for(streets, tmp_path / "out", class_groups=class_groups, **labels)

    def claim(class_groups) -> Path:
        request = request_with(class_groups)
        return claim_inputs(request, check_inputs(request), str)

    request = request_with(None)
    assert run_record(request, check_inputs(request))["inputs.class_groups"] is None
    claim("camvid-11")
    claim("camvid-11")
    with pytest.raises(ResumeError, match=r"\(inputs.class_groups: sky; .* -> None\)"):
        claim(None)
    with pytest.raises(ResumeError, match=r"inputs.class_groups: sky; .* -> road; "):
        claim("synthia-16")


def test_labels_with_ids_of_the_outputs_need_the_outputs_names(streets, tmp_path: Path):
    """Without a list of classes the ids are those of the groups."""
    groups = {"class_groups": "camvid-11"}
    with pytest.raises(
        DataError, match=r"labels_classes, such as cityscapes-19 for ids of the out"
    ):
        check_inputs(request_for(streets, tmp_path / "out", **groups))
    knobs = {"labels_classes": "cityscapes-19"}
    inputs = check_inputs(request_for(streets, tmp_path / "out", knobs, **groups))
    present = {int(i) for pair in inputs.labelled for i in np.unique(pair.labels())}
    assert present <= {*range(11), 255}
    assert len(present) > 4
