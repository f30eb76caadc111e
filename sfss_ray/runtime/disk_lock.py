"""Locks between the processes of one machine, which end with their process for any reason."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def try_lock(handle: int) -> bool:
    """Lock an open file. Return False if another process has the lock.

    A file system without locks cannot keep anyone out, and counts as locked.
    """
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


@contextlib.contextmanager
def hold_lock(file: Path) -> Iterator[bool]:
    """Hold a lock file for the block, and remove it afterwards.

    Args:
        file: The lock file. Where it cannot be created nothing is locked, as in a read-only folder.

    Yields:
        False if another process holds the lock.
    """
    try:
        handle = _open_locked(file)
    except OSError:
        yield True
        return
    if handle is None:
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        os.close(handle)


def _open_locked(file: Path) -> int | None:
    """Return the locked file, or None if another process holds the lock."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        if not try_lock(handle):
            os.close(handle)
            return None
        if _is_file(handle, file):
            return handle
        # Its former owner removed the file between the opening and the lock.
        os.close(handle)


def _is_file(handle: int, file: Path) -> bool:
    """Return whether an open file is still the one with this path."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False
