"""Detection of changed files by size and time, and by hash where those differ."""

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
    changed_files,
    read_contents,
    read_manifest,
    read_with_content,
    write_manifest,
)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / name for name in ("a", "b", "c")}
    for name, path in paths.items():
        path.write_bytes(name.encode() * 1000)
    return paths


def test_the_content_of_a_file_has_the_hash_of_its_bytes(files):
    data, recorded = read_with_content(files["a"])
    status = files["a"].stat()
    assert recorded == Content.of_file(files["a"])
    assert recorded == Content(1000, status.st_mtime_ns, hashlib.sha256(b"a" * 1000).hexdigest())
    assert data == b"a" * 1000


def test_files_with_the_same_size_and_time_are_not_read(files, monkeypatch):
    recorded = read_contents(files, {})
    monkeypatch.setattr(Content, "of_file", None)
    assert read_contents(files, recorded) == recorded
    assert changed_files(files, recorded) == []


def test_a_touched_file_is_unchanged_and_a_rewritten_one_is_not(files):
    recorded = read_contents(files, {})
    os.utime(files["a"], ns=(1, 1))
    assert changed_files(files, recorded) == []
    assert read_contents(files, recorded)["a"].mtime_ns == 1, "the new time is recorded"
    files["b"].write_bytes(b"B" * 1000)
    os.utime(files["b"], ns=(2, 2))
    files["c"].write_bytes(b"longer" * 1000)
    os.utime(files["c"], ns=(recorded["c"].mtime_ns, recorded["c"].mtime_ns))
    assert changed_files(files, recorded) == ["b", "c"]


def test_an_unreadable_file_does_not_count_as_changed(files):
    recorded = read_contents(files, {})
    files["a"].unlink()
    assert read_contents(files, recorded)["a"].sha256 == UNREADABLE
    assert changed_files(files, recorded) == []
    assert Content.of_file(files["a"]).matches_status(files["a"])


def test_a_manifest_round_trips_and_a_damaged_one_is_empty(files, tmp_path: Path):
    recorded = read_contents(files, {})
    write_manifest(tmp_path / "m.parquet", recorded)
    assert read_manifest(tmp_path / "m.parquet") == recorded
    (tmp_path / "m.parquet").write_bytes(b"half")
    assert read_manifest(tmp_path / "m.parquet") == {}
    assert read_manifest(tmp_path / "none.parquet") == {}


@pytest.mark.slow
def test_100_000_unchanged_files_are_compared_without_reading_any(tmp_path: Path, monkeypatch):
    files = {}
    for k in range(100_000):
        files[f"{k:06}"] = path = tmp_path / f"{k:06}"
        path.touch()
    recorded = read_contents(files, {})
    reads = []
    monkeypatch.setattr(content.Content, "of_file", lambda path: reads.append(path))
    started = time.process_time()
    assert changed_files(files, recorded) == []
    print(f"{time.process_time() - started:.2f} s of CPU")
    assert reads == []
