"""Copies of objects on a node's disk: downloaded once, renewed with the object, and limited in size."""

from __future__ import annotations

import os
import pickle
import threading
import time
from pathlib import Path

import pytest
from object_storage import bucket_address, s3_options  # noqa: F401

from sfss_ray.errors import OutputError
from sfss_ray.storage import object_cache
from sfss_ray.storage.object_cache import (
    ChangedObjectError,
    local_copy,
    read_copy,
    read_object,
    trim,
)
from sfss_ray.storage.places import ObjectPath, to_place


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of the copies, which is empty."""
    folder = tmp_path / "object cache"  # that of bucket_address
    monkeypatch.setenv(object_cache.FOLDER_VARIABLE, str(folder))
    monkeypatch.setattr(object_cache._Downloads, "unchecked_bytes", None)
    return folder


@pytest.fixture
def bucket(cache, bucket_address) -> ObjectPath:  # noqa: F811
    """A folder in a bucket with the object day/one.bin."""
    folder = to_place(bucket_address.format("data"))
    assert isinstance(folder, ObjectPath)
    (folder / "day" / "one.bin").write_bytes(b"first")
    return folder


def _copies(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name[0] != ".")


def test_a_path_is_its_own_copy(cache, tmp_path):
    assert local_copy(tmp_path / "a.png") == tmp_path / "a.png"
    assert not cache.exists()


def test_an_object_is_downloaded_once(bucket, cache, monkeypatch):
    ((listed, _),) = bucket.files()
    assert local_copy(listed).read_bytes() == b"first"
    assert local_copy(listed).suffix == ".bin"
    monkeypatch.setattr(ObjectPath, "download", None)
    monkeypatch.setattr(ObjectPath, "_info", None)  # a present copy needs no network
    assert read_object(pickle.loads(pickle.dumps(listed))) == b"first"
    assert len(_copies(cache)) == 1


def test_a_newer_object_has_another_copy(bucket, cache):
    ((listed, _),) = bucket.files()
    assert read_object(listed) == b"first"
    listed.write_bytes(b"2nd")
    assert read_object(bucket / "day" / "one.bin") == b"2nd"
    assert read_object(listed) == b"first"
    assert len(_copies(cache)) == 2


def test_an_object_that_changed_since_its_listing_is_refused(bucket, cache):
    ((listed, _),) = bucket.files()
    listed.write_bytes(b"longer than before")
    with pytest.raises(ChangedObjectError, match="had 5 bytes and has 18"):
        local_copy(listed)
    assert _copies(cache) == []


def test_a_missing_object(bucket):
    with pytest.raises(FileNotFoundError):
        local_copy(bucket / "none.bin")


def test_threads_that_want_the_same_object_download_it_once(bucket, cache, monkeypatch):
    calls, download = [], ObjectPath.download

    def slow(self, file):
        calls.append(self.name)
        time.sleep(0.3)
        download(self, file)

    monkeypatch.setattr(ObjectPath, "download", slow)
    ((listed, _),) = bucket.files()
    threads = [threading.Thread(target=local_copy, args=(listed,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == ["one.bin"]


def test_a_copy_that_another_process_removes_is_downloaded_again(bucket):
    ((listed, _),) = bucket.files()
    removed = []

    def read(copy: Path) -> bytes:
        if not removed:
            copy.unlink()
            removed.append(copy)
        return copy.read_bytes()

    assert read_copy(listed, read) == b"first"
    assert len(removed) == 1


def test_the_least_recently_used_copies_are_removed(bucket, cache):
    for name in "abcd":
        (bucket / f"{name}.bin").write_bytes(bytes(100))
    copies = {name: local_copy(bucket / f"{name}.bin") for name in "abcd"}
    for age, name in enumerate("abcd"):
        os.utime(copies[name], (time.time() - 1000 + age,) * 2)
    local_copy(bucket / "a.bin")  # used again
    trim(limit=250)
    assert {name for name, copy in copies.items() if copy.exists()} == {"a", "d"}


def test_copies_just_used_stay_whatever_the_limit(bucket, cache):
    copy = local_copy(bucket / "day" / "one.bin")
    trim(limit=1)
    assert copy.exists()


def test_the_limit_holds_while_objects_are_downloaded(bucket, cache, monkeypatch):
    monkeypatch.setenv(object_cache.LIMIT_VARIABLE, "0.000001")  # 1,000 bytes
    monkeypatch.setattr(object_cache, "_KEPT_SECONDS", -1.0)
    for number in range(30):
        (bucket / f"{number}.bin").write_bytes(bytes(100))
        local_copy(bucket / f"{number}.bin")
        assert sum(copy.stat().st_size for copy in _copies(cache)) <= 1000


def test_a_full_disk_is_one_line(bucket, cache, monkeypatch):
    def full(self, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ObjectPath, "download", full)
    with pytest.raises(
        OutputError, match=r"copies of objects in .* is full.*compute.cache_gb \(20\)"
    ):
        local_copy(bucket / "day" / "one.bin")


def test_a_folder_that_is_a_file_is_one_line(bucket, cache):
    cache.write_text("")
    with pytest.raises(OutputError, match=r"cannot be written to .*SFSS_RAY_CACHE"):
        local_copy(bucket / "day" / "one.bin")
