"""What files hold: size and modification time tell that a file is unchanged, a hash that it changed.

A copy, a checkout or `touch` gives a file a new time and leaves its content, so a time alone proves
no change. Files are hashed only where size and time differ from what was noted before.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sfss_ray.runtime.progress import Progress, ProgressSink, silent
from sfss_ray.storage.files import whole_file

UNREADABLE = "unreadable"
"""Stands for the hash of a file that cannot be opened."""
_AHEAD = 1024  # files handed to the threads at a time: progress is seen, and results do not pile up


@dataclass(frozen=True)
class Content:
    """What was noted of a file."""

    size: int
    """In bytes."""
    mtime_ns: int
    """When it was last modified."""
    sha256: str

    @classmethod
    def of_file(cls, path: Path | str) -> Content:
        """Of a file as it is now; one that cannot be opened has the hash UNREADABLE."""
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return cls(-1, -1, UNREADABLE)
        return cls(status.st_size, status.st_mtime_ns, sha256)

    def looks_like(self, path: Path | str) -> bool:
        """Whether a file has this size and modification time."""
        try:
            status = os.stat(path)
        except OSError:
            return self.sha256 == UNREADABLE
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)


def read_with_content(path: Path | str) -> tuple[bytes, Content]:
    """The bytes of a file and what to note of it. OSError when it cannot be read."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        data = file.read()
    return data, Content(len(data), status.st_mtime_ns, hashlib.sha256(data).hexdigest())


def contents(
    files: Mapping[str, Path],
    known: Mapping[str, Content],
    progress: ProgressSink = silent,
) -> dict[str, Content]:
    """The content of each file by name; of one that looks as `known` has it, without reading it."""
    found = {
        name: known[name]
        for name, path in files.items()
        if name in known and known[name].looks_like(path)
    }
    unread = {name: path for name, path in files.items() if name not in found}
    is_long = len(unread) > _AHEAD
    bar = Progress("input files read", len(unread), progress if is_long else silent)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = iter(unread)
        while names := list(islice(waiting, _AHEAD)):
            read = pool.map(lambda name: Content.of_file(unread[name]), names)
            found |= zip(names, read, strict=True)
            bar.advance(len(names))
    return {name: found[name] for name in files}


def changed(files: Mapping[str, Path], known: Mapping[str, Content]) -> list[str]:
    """Names of files that hold something else than was noted.

    Files without a note are left out, and so are those that cannot be read now: what they hold is
    not known.
    """
    noted = {name: path for name, path in files.items() if name in known}
    return [
        name
        for name, content in contents(noted, known).items()
        if content.sha256 not in (known[name].sha256, UNREADABLE)
    ]


def digest(found: Mapping[str, Content]) -> str:
    """SHA-256 over names and contents, whatever the order and the times."""
    lines = sorted(f"{name}\0{content.sha256}" for name, content in found.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def write_manifest(path: Path, found: Mapping[str, Content]) -> None:
    """Keep contents by name as a Parquet file, whole or not at all."""
    columns = {
        "name": list(found),
        "size": [content.size for content in found.values()],
        "mtime_ns": [content.mtime_ns for content in found.values()],
        "sha256": [content.sha256 for content in found.values()],
    }
    with whole_file(path) as temporary:
        pq.write_table(pa.table(columns, _MANIFEST), temporary, compression="zstd")


_MANIFEST = pa.schema(
    [("name", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64()), ("sha256", pa.string())]
)


def read_manifest(path: Path) -> dict[str, Content]:
    """Contents by name; empty where there is no such file or it is damaged."""
    try:
        table = pq.read_table(path)
        values = [table[name].to_pylist() for name in ("size", "mtime_ns", "sha256")]
        names = table["name"].to_pylist()
    except (OSError, KeyError, pa.ArrowException):
        return {}
    return dict(zip(names, map(Content, *values), strict=True))
