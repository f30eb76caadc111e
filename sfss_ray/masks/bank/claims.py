"""A lock that allows one run at a time to write masks to a folder."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from sfss_ray.errors import DataError, ResumeError
from sfss_ray.runtime.disk_lock import try_lock
from sfss_ray.runtime.progress import ProgressSink, silent
from sfss_ray.runtime.run_claim import claimed, holds_claim
from sfss_ray.storage.files import writing
from sfss_ray.storage.places import ObjectPath, Place

LOCK_FILE = ".masks.lock"


@contextlib.contextmanager
def claim_folder(folder: Place, progress: ProgressSink = silent) -> Iterator[str]:
    """Create the folder if needed and lock it: no other run writes masks to it inside the block.

    In object storage an object with a token takes the place of the lock, see `RunClaim`. On a disk the
    kernel releases the lock when the process ends for any reason. A file system without locks and a
    read-only folder cannot be locked. Yields the name of the claim, by which other processes of the
    run can tell that the folder is still theirs (`is_claimed_by`). It is empty without a lock.

    Raises:
        DataError: the folder cannot be created.
        ResumeError: another run is making masks in it.
    """
    if isinstance(folder, ObjectPath):
        with claimed(folder, progress) as run_claim:
            yield run_claim.token
        return
    _create(folder)
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # a read-only folder is complete, or writing the first shard fails
        yield ""
        return
    try:
        if not try_lock(handle):
            raise ResumeError(
                f"another run is making masks in {str(folder)!r}: wait for its end, or give another"
                " folder"
            )
        yield _write_claim(handle)
    finally:
        os.close(handle)


def _write_claim(handle: int) -> str:
    """Replace the last claim by a new name; return "" if it cannot be written."""
    claim = uuid.uuid4().hex
    try:
        os.ftruncate(handle, 0)
        os.write(handle, claim.encode())
    except OSError:  # writing the first shard reports a full disk
        return ""
    return claim


def is_claimed_by(folder: Place, claim: str) -> bool:
    """Return whether no later run has claimed the folder, or whether this is unknown."""
    if isinstance(folder, ObjectPath):
        with writing(folder):
            return holds_claim(folder, claim)
    try:
        return (folder / LOCK_FILE).read_text() in ("", claim) or not claim
    except OSError:
        return True


def require_claim(folder: Place, claim: str) -> None:
    """Raise ResumeError if a later run has claimed the folder; this run must not write there."""
    if not is_claimed_by(folder, claim):
        storage = "storage" if isinstance(folder, ObjectPath) else "disk"
        raise ResumeError(
            f"another run has begun to make masks in {str(folder)!r}, whose {storage} has no locks to"
            " keep it out: this run stops; wait for the end of the other run and run again"
        )


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "is a file" if folder.is_file() else f"cannot be made ({error.strerror or error})"
        raise DataError(
            f"output folder {str(folder)!r} {reason}: give a folder that you may write"
        ) from error
