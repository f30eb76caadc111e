"""Whether a file was changed: by size and time where they agree, by its hash where they do not."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from sfss_ray.data import content
from sfss_ray.data.content import (
    UNREADABLE,
    Content,
    changed,
    contents,
    read_manifest,
    read_with_content,
    write_manifest,
)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for name in ("a", "b", "c"):
        found[name] = tmp_path / name
        found[name].write_bytes(name.encode() * 1000)
    return found


def test_a_hash_is_that_of_the_bytes(files):
    data, noted = read_with_content(files["a"])
    status = files["a"].stat()
    assert noted == Content.of_file(files["a"])
    assert noted == Content(1000, status.st_mtime_ns, hashlib.sha256(b"a" * 1000).hexdigest())
    assert data == b"a" * 1000


def test_files_that_look_the_same_are_not_read(files, monkeypatch):
    noted = contents(files, {})
    monkeypatch.setattr(Content, "of_file", None)
    assert contents(files, noted) == noted
    assert changed(files, noted) == []


def test_a_touched_file_is_unchanged_and_a_rewritten_one_is_not(files):
    noted = contents(files, {})
    os.utime(files["a"], ns=(1, 1))
    assert changed(files, noted) == []
    assert contents(files, noted)["a"].mtime_ns == 1, "known by its new time from here on"
    files["b"].write_bytes(b"B" * 1000)
    os.utime(files["b"], ns=(2, 2))
    files["c"].write_bytes(b"longer" * 1000)
    os.utime(files["c"], ns=(noted["c"].mtime_ns, noted["c"].mtime_ns))
    assert changed(files, noted) == ["b", "c"]


def test_what_cannot_be_read_is_not_known_to_have_changed(files):
    noted = contents(files, {})
    files["a"].unlink()
    assert contents(files, noted)["a"].sha256 == UNREADABLE
    assert changed(files, noted) == []
    assert Content.of_file(files["a"]).looks_like(files["a"])


def test_a_manifest_comes_back(files, tmp_path: Path):
    noted = contents(files, {})
    write_manifest(tmp_path / "m.parquet", noted)
    assert read_manifest(tmp_path / "m.parquet") == noted
    (tmp_path / "m.parquet").write_bytes(b"half")
    assert read_manifest(tmp_path / "m.parquet") == {}
    assert read_manifest(tmp_path / "none.parquet") == {}


@pytest.mark.slow
def test_100_000_unchanged_files_are_compared_without_reading_one(tmp_path: Path, monkeypatch):
    files = {}
    for k in range(100_000):
        files[f"{k:06}"] = path = tmp_path / f"{k:06}"
        path.touch()
    noted = contents(files, {})
    reads = []
    monkeypatch.setattr(content.Content, "of_file", lambda path: reads.append(path))
    started = time.process_time()
    assert changed(files, noted) == []
    print(f"{time.process_time() - started:.2f} s of CPU")
    assert reads == []
