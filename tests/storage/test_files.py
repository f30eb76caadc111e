"""Atomic writes: files are whole or absent, and a failed write is an error of one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from object_storage import bucket_address, s3_options  # noqa: F401
from PIL import Image

from sfss_ray import cli
from sfss_ray.errors import DataError, OutputError
from sfss_ray.models.model_file import load_model
from sfss_ray.storage.files import (
    require_lasting,
    require_on_disk,
    require_output_file,
    require_writable,
    temporary_name,
    try_writing,
    whole_file,
    write_bytes,
    write_text,
    write_torch,
    written_after,
)
from sfss_ray.storage.places import to_place
from sfss_ray.streets.default import SOURCE_MODEL


def test_a_file_is_written_whole(tmp_path: Path):
    path = tmp_path / "deep" / "a.txt"
    assert write_text(path, "Grüße\n").read_bytes() == "Grüße\n".encode()
    assert write_bytes(path, b"new").read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_broken_write_leaves_the_former_file(tmp_path: Path):
    path = write_text(tmp_path / "a.txt", "former")

    def fail() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("half")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "former"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.fixture
def small_disk(tmp_path: Path):
    """A real file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        subprocess.run(words, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


NOISE = np.random.default_rng(0).integers(0, 256, 600_000, dtype=np.uint8)


def write_parquet(path: Path) -> None:
    with whole_file(path) as temporary:
        pq.write_table(pa.table({"x": NOISE}), temporary)


def write_png(path: Path) -> None:
    with whole_file(path) as temporary:
        Image.fromarray(NOISE.reshape(600, 1000)).save(temporary, format="PNG")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_bytes(path, NOISE.tobytes()),
        lambda path: write_torch(path, torch.from_numpy(NOISE)),
        write_parquet,
        write_png,
    ],
    ids=["bytes", "torch", "parquet", "png"],
)
def test_a_full_disk_is_one_line_and_earlier_files_stay(write, small_disk: Path):
    first = write_text(small_disk / "first", "whole")
    with pytest.raises(OutputError, match=r"No space left on device\): free some space") as refused:
        write(small_disk / "second")
    assert "\n" not in str(refused.value)
    assert first.read_text() == "whole"
    assert [p.name for p in small_disk.iterdir()] == ["first"]


def test_predict_on_a_full_disk_is_one_line_and_resumes(small_disk: Path, tmp_path: Path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for k in range(12):
        pixels = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{k:02}.png")
    words = ["predict", str(SOURCE_MODEL), str(images), str(small_disk / "out")]
    words += ["--compute.device", "cpu"]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written (No space left on device): free some space" in line
    done = sorted((small_disk / "out" / "train_ids").glob("*.png"))
    assert 0 < len(done) < 12
    for path in small_disk.rglob("*.png"):
        Image.open(path).load()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    before = {path: path.stat().st_mtime_ns for path in done}
    assert cli.main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in done} == before
    assert len(list((small_disk / "out" / "train_ids").glob("*.png"))) == 12


def test_a_path_that_may_not_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be written \(.*\): give a path that you may"):
        write_text(tmp_path / "file" / "a.txt", "x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_torch(tmp_path / "file" / "a.pt", {})


def test_a_folder_that_can_be_made_is_accepted_and_not_made(tmp_path: Path, monkeypatch):
    (tmp_path / "file").touch()
    require_writable(tmp_path / "a" / "b")
    require_writable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(OutputError, match=r"cannot be written \(Not a directory\): give a path"):
        require_writable(tmp_path / "file" / "b")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    for folder in (tmp_path, tmp_path / "a" / "b"):
        with pytest.raises(OutputError, match=r"cannot be written \(Permission denied\)"):
            require_writable(folder)


def test_other_errors_of_torch_are_not_taken_for_a_full_disk(tmp_path: Path):
    with pytest.raises(Exception, match=r"pickle|local object|lambda"):
        write_torch(tmp_path / "a.pt", lambda: None)
    assert list(tmp_path.iterdir()) == []
    assert load_model(SOURCE_MODEL)


@pytest.mark.parametrize("kind", ["working_dir_files", "py_modules_files"])
def test_results_are_refused_in_the_folder_that_ray_unpacks_for_a_job(
    kind, tmp_path: Path, monkeypatch
):
    unpacked = tmp_path / "session_1" / "runtime_resources" / kind / "_ray_pkg_0123"
    unpacked.mkdir(parents=True)
    monkeypatch.chdir(unpacked)
    for path in ("runs/a", unpacked, unpacked / "runs"):
        with pytest.raises(OutputError, match="deletes after it: give an absolute path"):
            require_lasting(path)
    assert require_lasting(tmp_path / "runs") == tmp_path / "runs"
    monkeypatch.chdir(tmp_path)
    assert require_lasting("runs") == tmp_path / "runs"


@pytest.mark.parametrize(
    "words",
    [
        ["masks", "--target-images", "@", "--output-dir", "out"],
        ["masks", "import", "@l", "@", "out"],
        ["adapt", "--source-model", "@m", "--target-images", "@", "--output-dir", "out"],
        ["tune", "--source-model", "@m", "--target-images", "@", "--output-dir", "out"],
        ["pretrain", "--images", "@", "--labels", "@l", "--output-dir", "out"],
        ["predict", "@m", "@", "out"],
        ["evaluate", "--model", "@m", "--images", "@", "--labels", "@l", "--output-dir", "out"],
        ["export", "@m", "out.onnx"],
    ],
    ids=lambda words: words[0],
)
def test_every_verb_refuses_a_relative_output_in_a_job(words, tmp_path: Path, monkeypatch, capsys):
    images, labels = tmp_path / "images", tmp_path / "labels"
    for folder, shape in ((images, (32, 64, 3)), (labels, (32, 64))):
        folder.mkdir()
        for name in ("a.png", "b.png"):
            Image.fromarray(np.zeros(shape, np.uint8)).save(folder / name)
    job = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    paths = {"@": str(images), "@l": str(labels), "@m": str(SOURCE_MODEL)}
    assert cli.main([paths.get(word, word) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "deletes after it: give an absolute path" in line
    assert list(job.iterdir()) == []


def test_the_default_output_of_a_recipe_is_refused_in_a_job_before_data_is_drawn(tmp_path: Path):
    job = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    job.mkdir(parents=True)
    script = Path(__file__).resolve().parents[2] / "experiments" / "tune_gta2cs.py"
    done = subprocess.run(
        [sys.executable, str(script)], cwd=job, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "deletes after it: give an absolute path" in line
    assert list(job.iterdir()) == []


def test_the_order_of_two_writes(tmp_path: Path):
    source, result = write_text(tmp_path / "source", "s"), write_text(tmp_path / "result", "r")
    second = 1_700_000_000 * 10**9
    os.utime(result, ns=(second, second))
    for source_time, is_later in ((second - 1, False), (second, False), (second + 1, True)):
        os.utime(source, ns=(source_time, source_time))
        assert written_after(source, result) is is_later
    with pytest.raises(FileNotFoundError):
        written_after(tmp_path / "absent", result)


def test_in_object_storage_a_source_of_the_same_second_is_older(tmp_path: Path, bucket_address):  # noqa: F811
    source, result = write_text(tmp_path / "source", "s"), to_place(bucket_address.format("result"))
    write_text(result, "r")
    second = result.stat().st_mtime_ns
    assert second % 10**9 == 0
    for source_time, is_later in ((second + 10**9 - 1, False), (second + 10**9, True)):
        os.utime(source, ns=(source_time, source_time))
        assert written_after(source, result) is is_later


@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_is_no_path_on_a_disk(tmp_path: Path, kind):
    address = kind("s3://user:secret@fleet/out.onnx")
    with pytest.raises(
        OutputError, match=r"^ONNX file 's3://fleet/out.onnx' is an address, .*path"
    ):
        require_lasting(address, "ONNX file")
    with pytest.raises(DataError, match=r"^masks: 's3://fleet/out.onnx' is an address, .*copy it"):
        require_on_disk(address, "masks")
    for require in (require_lasting, require_on_disk):
        assert require(kind(f"file://{tmp_path}/a"), "output") == tmp_path / "a"
        assert require(kind("a"), "output") == Path.cwd() / "a"


def test_an_output_file_replaces_only_its_own_kind(tmp_path: Path):
    def refusal(path: Path) -> str:
        with pytest.raises(OutputError, match=r"^picture '") as refused:
            require_output_file(path, "picture", ".png", b"\x89PNG")
        return str(refused.value)

    for name, content in {"a.png": b"\x89PNG...", "empty.PNG": b"", "b.png": b"PK"}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "c.png").mkdir()
    for name in ("a.png", "empty.PNG", "new.png", "new/new.png"):
        file = require_output_file(str(tmp_path / name), "picture", ".png", b"\x89PNG")
        assert file == tmp_path / name
    assert "b.png' exists and is a file of another kind: give a new name" in refusal(
        tmp_path / "b.png"
    )
    assert "c.png' is a folder: give the path of a file" in refusal(tmp_path / "c.png")
    assert "a.pt' has another suffix: give a name that ends in .png" in refusal(tmp_path / "a.pt")
    assert not (tmp_path / "new").exists()


def test_a_trial_of_a_folder_leaves_nothing_behind(tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "out").mkdir()
    for folder in ("out", "a/b", "out/c"):
        try_writing(tmp_path / folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]
    assert list((tmp_path / "out").iterdir()) == []
    for folder, reason in {
        "file": "File exists",
        "file/a": "Not a directory",
        f"a/{300 * 'x'}": "File name too long",
    }.items():
        with pytest.raises(OutputError, match=rf"cannot be written \({reason}\)"):
            try_writing(tmp_path / folder)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", [251 * "x" + ".png", 125 * "ä" + ".json", 255 * "x"])
def test_a_name_may_be_as_long_as_the_disk_takes(name, tmp_path: Path):
    assert len(name.encode()) == 255
    assert write_text(tmp_path / name, "a").read_text() == "a"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert temporary_name(name).split(".")[2:] == [*name.split(".")[1:], str(os.getpid())]


def test_temporary_names_are_told_apart():
    assert temporary_name("a.png") == f".a.png.{os.getpid()}"
    assert temporary_name(200 * "x" + "a.png") != temporary_name(200 * "x" + "b.png")
