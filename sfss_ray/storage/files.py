"""Atomic writes to any place: a file appears whole or not at all, and a failed write is an error of
one line. Also the order of two writes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from sfss_ray.errors import DataError, OutputError
from sfss_ray.storage.addresses import without_secret
from sfss_ray.storage.places import ObjectPath, Place, to_place

_Place = TypeVar("_Place", bound=Path | ObjectPath)

_TORCH_WRITER = ("PytorchStreamWriter", "inline_container", "iostream error")
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LONGEST_NAME, _LONGEST_SUFFIX = 100, 10
"""In bytes and characters. A disk takes 255 bytes, or 143 where it encrypts names."""
_PACKAGE_CACHE = re.compile(r"/runtime_resources/(working_dir|py_modules)_files/")
"""Folder on a node where Ray unpacks the files of a submitted job, and which it deletes afterwards."""


def is_disk_full(error: OSError) -> bool:
    """Return whether an error means a full disk; Arrow's errors tell it by their text alone."""
    return error.errno in _DISK_FULL or "No space left" in str(error)


def unusable_line(error: OSError) -> str | None:
    """Return an OSError in one line with what to do; None for an error that names no file.

    `Path.exists` and `Path.is_dir` raise such errors too: for a folder that may not be entered, and for
    a name that is too long.
    """
    if is_disk_full(error):
        return f"the disk is full ({error}): free some space and run again. Finished work is kept"
    if error.filename is None:
        return None
    return (
        f"{os.fsdecode(error.filename)!r} cannot be used ({error.strerror}): check the path and its"
        " permissions"
    )


def written_after(source: Place, result: Place) -> bool:
    """Return whether a file was written after the result that was made from it.

    Object storage keeps whole seconds, cut off. There a source of the result's own second counts as
    older, because a result is written when its source is there already.

    Raises:
        OSError: one of them cannot be reached.
    """
    source_time, result_time = source.stat().st_mtime_ns, result.stat().st_mtime_ns
    if isinstance(result, ObjectPath):
        source_time -= source_time % 10**9
    return source_time > result_time


@contextlib.contextmanager
def writing(path: Place | str) -> Iterator[None]:
    """Turn an OSError of the block into an OutputError that names `path`.

    Raises:
        OutputError: the disk is full, or the path cannot be written.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or without_secret(str(error)) or type(error).__name__
        raise OutputError(
            f"{without_secret(str(path))!r} cannot be written ({reason}): {_advice(path, error)}, and"
            " run again; files that were written before are whole and are kept"
        ) from error


def _advice(path: Place | str, error: OSError) -> str:
    if is_disk_full(error):
        return "free some space, or give an output folder on another disk"
    if isinstance(path, ObjectPath):
        return "check the address, the network and this machine's credentials"
    return "give a path that you may write to"


def temporary_name(name: str) -> str:
    """Return the name under which a file is written, '.NAME.PID'; long names are replaced by a hash.

    Otherwise a name could be too long for the disk although that of the file itself is not. The suffix
    stays, by which leftovers of killed processes are known.
    """
    if len(os.fsencode(name)) > _LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
        name = f"{digest}{Path(name).suffix[:_LONGEST_SUFFIX]}"
    return f".{name}.{os.getpid()}"


@contextlib.contextmanager
def whole_file(path: Place) -> Iterator[Path]:
    """Yield a temporary path, whose file becomes `path` if the block ends without an error.

    On a disk the file is renamed, in object storage it is uploaded. Missing folders are created. Readers
    never see half a file, and a failed write leaves none behind.

    Raises:
        OutputError: see `writing`.
    """
    if isinstance(path, ObjectPath):
        with writing(path), tempfile.TemporaryDirectory() as folder:
            file = Path(folder, path.name)
            yield file
            path.upload(file)
        return
    temporary = path.with_name(temporary_name(path.name))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def file_on_disk(path: Place) -> Iterator[Path]:
    """Yield a file's path on this machine: its own, or that of a temporary copy of an object.

    Raises:
        OSError: the object is missing, or cannot be read.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        path.download(copy)
        yield copy


def write_bytes(path: _Place, data: bytes) -> _Place:
    """Write a file, whole or not at all; see `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)
    return path


def write_text(path: _Place, text: str) -> _Place:
    """Write a UTF-8 text file, whole or not at all; see `whole_file`."""
    return write_bytes(path, text.encode())


def write_torch(path: _Place, content: Any) -> _Place:
    """Write a file with `torch.save`, whole or not at all; see `whole_file`."""
    import torch

    with whole_file(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's archive writer hides the error of the disk
            if not any(marker in str(error) for marker in _TORCH_WRITER):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    return path


def require_lasting(path: Path | str, name: str = "output folder", alternative: str = "") -> Path:
    """Return the absolute path, after a check that it outlives a submitted job.

    Args:
        path: Where results are to be written.
        name: What the path is, for the error.
        alternative: Another way out, which ends the error.

    Raises:
        OutputError: the path is an address in object storage; or it lies in the folder that Ray unpacked
            for the job and will delete. Every relative path of a job does.
        DataError: an address names no bucket.
    """
    absolute = to_place(path)
    if isinstance(absolute, ObjectPath):
        raise OutputError(
            f"{name} {str(absolute)!r} is an address, but it is written to disks only: give a path, and"
            " copy the result to the address"
        )
    if _PACKAGE_CACHE.search(f"{absolute.as_posix()}/"):
        raise OutputError(
            f"{name} {os.fspath(path)!r} lies in the folder that Ray unpacked for this job"
            f" ({str(absolute)!r}) and deletes after it: give an absolute path on a disk that stays,"
            f" such as one that all nodes mount{alternative}"
        )
    return absolute


def require_writable(folder: Path) -> None:
    """Check that a folder can be made and written at a path, without writing anything.

    Raises:
        OutputError: the folder, or the nearest one above it that exists, cannot be written, or a file
            is in the way.
    """
    with writing(folder):
        nearest = folder
        while not nearest.exists():
            nearest = nearest.parent
        if nearest != folder and not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if nearest.is_dir() and not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def read_torch(path: Place) -> Any:
    """Read a file of tensors and plain values onto the CPU.

    Raises:
        OSError: the file is missing, or cannot be read.
    """
    import torch

    with file_on_disk(path) as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def lasting_place(address: Place | str, name: str = "output folder") -> Place:
    """Return the place of an address or of a path, after the check of `require_lasting`.

    Raises:
        OutputError: see `require_lasting`. An address in object storage always outlives a job.
        DataError: an address names no bucket.
    """
    folder = to_place(address)
    if isinstance(folder, ObjectPath):
        return folder
    return require_lasting(folder, name, ", or an address such as s3://bucket/run")


def try_writing(folder: Path) -> None:
    """Write a file below a folder and remove it, before long work whose result belongs there.

    The folders that this makes are removed too, so that work which fails leaves nothing behind.

    Raises:
        OutputError: the folder cannot be made or written, or a file is in the way.
    """
    with writing(folder):
        new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(4096))
        finally:
            for path in new_folders:
                with contextlib.suppress(OSError):
                    path.rmdir()


def require_output_file(path: Path | str, name: str, suffix: str, signature: bytes) -> Path:
    """Return the absolute path of a file to write, after a check that it replaces only its own kind.

    Args:
        path: The file.
        name: What the file is, for the error.
        suffix: Suffix that its name must have, such as '.png'.
        signature: First bytes of each file of this kind.

    Raises:
        OutputError: the name has another suffix, the path is a folder or a file of another kind, or see
            `require_lasting`.
    """
    file = require_lasting(path, name)
    if file.suffix.lower() != suffix:
        raise OutputError(
            f"{name} {str(file)!r} has another suffix: give a name that ends in {suffix}"
        )
    if file.is_dir():
        raise OutputError(f"{name} {str(file)!r} is a folder: give the path of a file")
    if not file.exists():
        return file
    with open(file, "rb") as handle:
        start = handle.read(len(signature))
    if start not in (b"", signature):
        raise OutputError(
            f"{name} {str(file)!r} exists and is a file of another kind: give a new name, or remove it"
        )
    return file


def require_on_disk(path: Place | str, role: str) -> Path:
    """Return the absolute path of an input that is read from disks only.

    Raises:
        DataError: the path is an address in object storage.
    """
    location = to_place(path)
    if isinstance(location, ObjectPath):
        raise DataError(
            f"{role}: {str(location)!r} is an address, but it is read from disks only: copy it to a"
            " disk, and give that path"
        )
    return location
