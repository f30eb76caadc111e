"""Copies of objects on a node's disk, so that a training reads each image from the network once.

All processes of a node share the folder. A copy is written under a temporary name and renamed. It is
named by a hash of the object's address, size and time, so a newer object has another copy. Copies that
were not used for the longest time are removed when the folder exceeds its limit.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from sfss_ray.errors import OutputError
from sfss_ray.storage.files import is_disk_full
from sfss_ray.storage.places import ObjectPath, ObjectStatus, Place

FOLDER_VARIABLE = "SFSS_RAY_CACHE"
"""Environment variable with the folder of the copies, on each node."""
LIMIT_VARIABLE = "SFSS_RAY_CACHE_GB"
DEFAULT_GB = 20.0
_GIGABYTE = 10**9
_KEPT_SECONDS = 60.0
"""A copy that was used so recently is never removed: a process may be about to open it."""
_LEFT_SECONDS = 3600.0
"""A temporary file that was not written to for so long was left by a killed process."""
_FILLED_TO = 0.9
"""Share of the limit that remains filled when copies are removed."""
_SHARE_UNCHECKED = 0.02
"""Share of the limit that a process downloads before it measures the folder again."""
_ATTEMPTS = 3

_Result = TypeVar("_Result")


class ChangedObjectError(OSError):
    """An object is not the one that was listed."""


class _Downloads:
    """What this process has downloaded since it measured the folder."""

    unchecked_bytes: int | None = None
    """None before the first measurement."""


def set_limit(gigabytes: float) -> None:
    """Set the limit of the folder, for this process and those that it starts."""
    os.environ[LIMIT_VARIABLE] = f"{gigabytes:g}"


def cache_folder() -> Path:
    """Return the folder of the copies on this node."""
    named = os.environ.get(FOLDER_VARIABLE, "").strip()
    if named:
        return Path(named)
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir(), f"sfss-ray-cache-{user}")


def local_copy(location: Place | str) -> Path:
    """Return a file on this node with the content of a place.

    A path returns itself. An object is downloaded unless the node has a copy. Where the place comes from
    a listing, a present copy is found without any network call.

    Raises:
        FileNotFoundError: there is no such object.
        ChangedObjectError: the object was replaced since it was listed.
        OSError: the object cannot be read.
        OutputError: the disk of the copies is full, or cannot be written.
    """
    if not isinstance(location, ObjectPath):
        return Path(location)
    status = location.listed or location.stat()
    copy = _copy_of(location, status)
    try:
        os.utime(copy)  # marks the use, and fails where there is no copy
        return copy
    except (FileNotFoundError, NotADirectoryError):
        return _download(location, status, copy)


def read_copy(location: Place | str, read: Callable[[Path], _Result]) -> _Result:
    """Return what `read` returns for the file of `local_copy`.

    Another process may remove a copy before it is opened. It is downloaded again then.

    Raises:
        OSError: see `local_copy`; or an error of `read`.
    """
    if not isinstance(location, ObjectPath):
        return read(Path(location))
    for _ in range(_ATTEMPTS - 1):
        copy = local_copy(location)
        try:
            return read(copy)
        except FileNotFoundError:
            if copy.exists():
                raise
    return read(local_copy(location))


def read_object(location: Place | str) -> bytes:
    """Return the content of a file, or of an object by its copy on this node; see `local_copy`."""
    return read_copy(location, Path.read_bytes)


def _copy_of(location: ObjectPath, status: ObjectStatus) -> Path:
    identity = f"{location.address}\n{status.st_size}\n{status.st_mtime_ns}"
    name = hashlib.sha256(identity.encode()).hexdigest()
    return cache_folder() / name[:2] / f"{name}{location.suffix}"


def _download(location: ObjectPath, status: ObjectStatus, copy: Path) -> Path:
    with _making_copies():
        _make_private_folder(copy.parent)
        with _locked(copy.parent / ".lock"):
            if copy.exists():  # another process was quicker
                return copy
            temporary = copy.with_name(f".{copy.name}.{os.getpid()}")
            try:
                location.download(temporary)
                size = temporary.stat().st_size
                if size != status.st_size:
                    raise ChangedObjectError(
                        f"{str(location)!r} was changed while it was used: it had"
                        f" {status.st_size} bytes and has {size}"
                    )
                temporary.replace(copy)
            finally:
                temporary.unlink(missing_ok=True)
    _trim_sometimes(status.st_size)
    return copy


@contextlib.contextmanager
def _making_copies() -> Iterator[None]:
    """Turn errors of the disk into an OutputError; errors of the storage stay."""
    try:
        yield
    except OSError as error:
        advice = f"set {FOLDER_VARIABLE} to a folder on another disk"
        if is_disk_full(error):
            raise OutputError(
                f"the disk of the copies of objects in {str(cache_folder())!r} is full: free some space,"
                f" lower compute.cache_gb ({_limit_gb():g}), or {advice}"
            ) from error
        if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
            raise OutputError(
                f"copies of objects cannot be written to {str(cache_folder())!r}"
                f" ({error.strerror or error}): {advice}"
            ) from error
        raise


def _make_private_folder(folder: Path) -> None:
    """Create a folder for this user alone: every user may write to the folder of temporary files.

    Raises:
        PermissionError: the folder of the copies belongs to another user.
    """
    top = cache_folder()
    top.mkdir(mode=0o700, parents=True, exist_ok=True)
    is_shared = FOLDER_VARIABLE not in os.environ and hasattr(os, "getuid")
    if is_shared and top.stat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it belongs to another user")
    folder.mkdir(exist_ok=True)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the lock of a file, so that one process of the node downloads an object."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with open(file, "ab") as handle:
        with contextlib.suppress(OSError):  # without locks an object may be downloaded twice
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _limit_gb() -> float:
    try:
        return float(os.environ.get(LIMIT_VARIABLE, DEFAULT_GB))
    except ValueError:
        return DEFAULT_GB


def _trim_sometimes(added_bytes: int) -> None:
    """Remove copies above the limit. The folder is measured now and then, as it may be long."""
    limit = int(_limit_gb() * _GIGABYTE)
    unchecked = _Downloads.unchecked_bytes
    if unchecked is not None and unchecked + added_bytes < _SHARE_UNCHECKED * limit:
        _Downloads.unchecked_bytes = unchecked + added_bytes
        return
    _Downloads.unchecked_bytes = 0
    trim(limit)


def trim(limit: int) -> None:
    """Remove the copies whose last use is longest ago until the folder is below `limit` bytes."""
    now = time.time()
    copies: list[tuple[float, int, str]] = []
    for entry in _files_of(cache_folder()):
        with contextlib.suppress(OSError):  # another process removed it
            status = entry.stat()
            if not entry.name.startswith("."):
                copies.append((status.st_mtime, status.st_size, entry.path))
            elif entry.name != ".lock" and now - status.st_mtime > _LEFT_SECONDS:
                os.unlink(entry.path)
    total = sum(size for _, size, _ in copies)
    if total <= limit:
        return
    for used, size, path in sorted(copies):
        if total <= _FILLED_TO * limit or now - used < _KEPT_SECONDS:
            return
        with contextlib.suppress(OSError):
            os.unlink(path)
        total -= size


def _files_of(folder: Path) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(folder) as parts:
        for part in parts:
            if part.name.startswith("."):
                continue
            with contextlib.suppress(OSError), os.scandir(part.path) as files:
                yield from files
