"""Detection of changed files by size, modification time and hash.

A file with the same size and modification time counts as unchanged. A different time alone proves no
change, since copies, checkouts and `touch` give files a new time. So files are hashed only where size
or time differ from the recorded ones.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from sfss_ray.runtime.progress import Progress, ProgressSink, silent
from sfss_ray.storage.files import file_on_disk, whole_file
from sfss_ray.storage.object_cache import read_object
from sfss_ray.storage.places import ObjectPath, ObjectStatus, Place

UNREADABLE = "unreadable"
"""Takes the place of the hash of a file that cannot be opened."""
_CHUNK = 1024  # files submitted to the threads at a time, so that results do not pile up
_MANIFEST_SCHEMA = pa.schema(
    [("name", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64()), ("sha256", pa.string())]
)


@dataclass(frozen=True)
class Content:
    """The recorded state of a file."""

    size: int
    """In bytes."""
    mtime_ns: int
    """Modification time in nanoseconds since the epoch."""
    sha256: str

    @classmethod
    def of_file(cls, path: Place | str) -> Content:
        """Return the current state of a file; the hash is UNREADABLE if it cannot be opened."""
        if isinstance(path, ObjectPath):
            try:
                return read_with_content(path)[1]
            except OSError:
                return cls(-1, -1, UNREADABLE)
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return cls(-1, -1, UNREADABLE)
        return cls(status.st_size, status.st_mtime_ns, sha256)

    @classmethod
    def of_listed(cls, path: Place) -> Content:
        """Return the state of an input file of a run.

        Objects are not read for it: a name made of size and time takes the place of the hash.
        """
        if not isinstance(path, ObjectPath):
            return cls.of_file(path)
        try:
            status = _listed_status(path)
        except OSError:
            return cls(-1, -1, UNREADABLE)
        size, mtime_ns = status.st_size, status.st_mtime_ns
        return cls(size, mtime_ns, f"object {size} {mtime_ns}")

    def matches_status(self, path: Place | str) -> bool:
        """Return whether a file has this size and modification time, without reading it."""
        try:
            status = _listed_status(path) if isinstance(path, ObjectPath) else os.stat(path)
        except OSError:
            return self.sha256 == UNREADABLE
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)


def _listed_status(location: ObjectPath) -> ObjectStatus:
    return location.listed or location.stat()


def read_with_content(path: Place | str) -> tuple[bytes, Content]:
    """Return the bytes of a file and its state, from a single read.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(path, ObjectPath):
        status, data = _listed_status(path), read_object(path)
    else:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            data = file.read()
    return data, Content(len(data), status.st_mtime_ns, hashlib.sha256(data).hexdigest())


def read_contents(
    files: Mapping[str, Place],
    recorded: Mapping[str, Content],
    progress: ProgressSink = silent,
    read: Callable[[Place], Content] = Content.of_listed,
) -> dict[str, Content]:
    """Return the state of each file by name. Files that match their recorded state are not read.

    Args:
        files: Paths by name.
        recorded: Earlier states by name; names may be missing.
        progress: Called with lines of text if many files have to be read.
        read: Returns the state of a file that does not match its recorded one.
    """
    contents = {
        name: recorded[name]
        for name, path in files.items()
        if name in recorded and recorded[name].matches_status(path)
    }
    unread = {name: path for name, path in files.items() if name not in contents}
    is_long = len(unread) > _CHUNK
    bar = Progress("input files read", len(unread), progress if is_long else silent)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        remaining = iter(unread)
        while names := list(islice(remaining, _CHUNK)):
            chunk = pool.map(lambda name: read(unread[name]), names)
            contents |= zip(names, chunk, strict=True)
            bar.advance(len(names))
    return {name: contents[name] for name in files}


def changed_files(files: Mapping[str, Place], recorded: Mapping[str, Content]) -> list[str]:
    """Return the names of files whose content differs from the recorded one.

    Files without a record are not included, nor files that cannot be read now, since their content
    is unknown.
    """
    with_record = {name: path for name, path in files.items() if name in recorded}
    return [
        name
        for name, content in read_contents(with_record, recorded, read=Content.of_file).items()
        if content.sha256 not in (recorded[name].sha256, UNREADABLE)
    ]


def write_manifest(path: Place, contents: Mapping[str, Content]) -> None:
    """Write contents by name to a Parquet file, atomically."""
    columns = {
        "name": list(contents),
        "size": [content.size for content in contents.values()],
        "mtime_ns": [content.mtime_ns for content in contents.values()],
        "sha256": [content.sha256 for content in contents.values()],
    }
    with whole_file(path) as temporary:
        pq.write_table(pa.table(columns, _MANIFEST_SCHEMA), temporary, compression="zstd")


def read_manifest(path: Place) -> dict[str, Content]:
    """Return the contents of a manifest by name, or {} if the file is missing or damaged."""
    try:
        with file_on_disk(path) as file:
            table = pq.read_table(file)
        columns = [table[name].to_pylist() for name in ("size", "mtime_ns", "sha256")]
        names = table["name"].to_pylist()
    except (OSError, KeyError, pa.ArrowException):
        return {}
    return dict(zip(names, map(Content, *columns), strict=True))
