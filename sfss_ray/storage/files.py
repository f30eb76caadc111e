"""Writing files: each appears whole or not at all, and a refusal of the disk is one line."""

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
"""Where Ray unpacks a submitted job's files on a node. It is deleted after the job."""


def is_disk_full(error: OSError) -> bool:
    """Whether an error says so; Arrow's do by their text alone."""
    return error.errno in _DISK_FULL or "No space left" in str(error)


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn what the disk says inside the block into an OutputError that names `path`.

    Raises:
        OutputError: the disk is full, or the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        advice = (
            "free some space, or give an output folder on another disk"
            if is_disk_full(error)
            else "give a place that you may write to"
        )
        raise OutputError(
            f"{os.fspath(path)!r} cannot be written ({reason}): {advice}, and run again; what was"
            " written before is whole and is kept"
        ) from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A hidden temporary path to write to, renamed to `path` when the block ends without an error.

    Folders are made. A reader never sees half a file, and a failed write leaves nothing behind.

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
    """Write a file whole or not at all; see `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 text file whole or not at all; see `whole_file`."""
    return write_bytes(path, text.encode())


def write_torch(path: Path, content: Any) -> Path:
    """`torch.save`, whole or not at all; see `whole_file`."""
    import torch

    with whole_file(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's archive writer hides the disk's own error
            if not any(word in str(error) for word in _TORCH_WRITER):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    return path


def require_lasting(path: Path | str, what: str = "output folder") -> Path:
    """The absolute path, where what is written outlives a submitted job.

    Raises:
        OutputError: the path lies in the folder that Ray unpacked for the job, as every relative path
            of a job does. Ray deletes it.
    """
    absolute = Path(path).absolute()
    if _PACKAGE_CACHE.search(f"{absolute.as_posix()}/"):
        raise OutputError(
            f"{what} {os.fspath(path)!r} lies in the folder that Ray unpacked for this job"
            f" ({str(absolute)!r}) and deletes after it: give an absolute path on a disk that stays,"
            " such as one that all nodes mount"
        )
    return absolute
