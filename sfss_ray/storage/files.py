"""Atomic writes: a file appears whole or not at all, and a failed write is an error of one line."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sfss_ray.errors import OutputError

_TORCH_WRITER = ("PytorchStreamWriter", "inline_container", "iostream error")
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PACKAGE_CACHE = re.compile(r"/runtime_resources/(working_dir|py_modules)_files/")
"""Folder on a node where Ray unpacks the files of a submitted job, and which it deletes afterwards."""


def is_disk_full(error: OSError) -> bool:
    """Return whether an error means a full disk; Arrow's errors tell it by their text alone."""
    return error.errno in _DISK_FULL or "No space left" in str(error)


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn an OSError of the block into an OutputError that names `path`.

    Raises:
        OutputError: the disk is full, or the path cannot be written.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        advice = (
            "free some space, or give an output folder on another disk"
            if is_disk_full(error)
            else "give a path that you may write to"
        )
        raise OutputError(
            f"{os.fspath(path)!r} cannot be written ({reason}): {advice}, and run again; files"
            " that were written before are whole and are kept"
        ) from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a hidden temporary path, which is renamed to `path` if the block ends without an error.

    Missing folders are created. Readers never see half a file, and a failed write leaves none behind.

    Raises:
        OutputError: see `writing`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file, whole or not at all; see `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 text file, whole or not at all; see `whole_file`."""
    return write_bytes(path, text.encode())


def write_torch(path: Path, content: Any) -> Path:
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


def require_lasting(path: Path | str, name: str = "output folder") -> Path:
    """Return the absolute path, after a check that it outlives a submitted job.

    Args:
        path: Where results are to be written.
        name: What the path is, for the error.

    Raises:
        OutputError: the path lies in the folder that Ray unpacked for the job and will delete. Every
            relative path of a job does.
    """
    absolute = Path(path).absolute()
    if _PACKAGE_CACHE.search(f"{absolute.as_posix()}/"):
        raise OutputError(
            f"{name} {os.fspath(path)!r} lies in the folder that Ray unpacked for this job"
            f" ({str(absolute)!r}) and deletes after it: give an absolute path on a disk that stays,"
            " such as one that all nodes mount"
        )
    return absolute
