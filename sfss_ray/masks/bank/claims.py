"""One writer per folder of masks."""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from sfss_ray.errors import DataError, ResumeError

LOCK_FILE = ".masks.lock"


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[str]:
    """Make the folder where it is missing; no other run writes masks there inside the block.

    The kernel gives the lock back with the process, however that ends. Where a file system has no
    locks, or the folder may only be read, there is none. Yields the claim's name, by which processes
    of the run tell that the folder is theirs still (`is_claimed_by`); empty where there is no lock.

    Raises:
        DataError: the folder cannot be made.
        ResumeError: another run is at work there.
    """
    _make(folder)
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # a folder that may only be read is complete, or refuses the first shard
        yield ""
        return
    try:
        if not _lock(handle):
            raise ResumeError(
                f"another run is making masks in {str(folder)!r}: wait for its end, or give another"
                " folder"
            )
        yield _name_claim(handle)
    finally:
        os.close(handle)


def _name_claim(handle: int) -> str:
    """Put a new name in place of the last claim's; empty where it cannot be written."""
    claim = uuid.uuid4().hex
    try:
        os.ftruncate(handle, 0)
        os.write(handle, claim.encode())
    except OSError:  # a full disk is told of by the first shard
        return ""
    return claim


def is_claimed_by(folder: Path, claim: str) -> bool:
    """Whether no later run has claimed the folder; also where that cannot be told."""
    try:
        return (folder / LOCK_FILE).read_text() in ("", claim) or not claim
    except OSError:
        return True


def refuse_former(folder: Path, claim: str) -> None:
    """ResumeError where a later run has claimed the folder: shards of the former are not written."""
    if not is_claimed_by(folder, claim):
        raise ResumeError(
            f"another run has begun to make masks in {str(folder)!r}, whose disk has no locks to keep it"
            " out: this one stops; wait for the end of that one and run again"
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = "is a file" if folder.is_file() else f"cannot be made ({error.strerror or error})"
        raise DataError(
            f"output folder {str(folder)!r} {what}: give a folder that you may write"
        ) from error


def _lock(handle: int) -> bool:
    """Whether nobody else has the lock."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network disk without locks
        return True
    return True
