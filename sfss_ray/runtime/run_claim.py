"""The claim of a run on its folder, which keeps two drivers from writing to it at the same time.

On a disk it is a lock file, which ends with its process. Object storage has no locks. There a driver
writes an object with a token of its own, waits, and reads it back: of two that begin at once only the
later writer finds its token. While it runs it renews the object. A claim that is not renewed was left by
a driver that was killed, and is replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from sfss_ray.errors import ResumeError
from sfss_ray.runtime.disk_lock import hold_lock
from sfss_ray.runtime.progress import ProgressSink, silent
from sfss_ray.storage.files import write_text, writing
from sfss_ray.storage.places import ObjectPath, Place

CLAIM_FILE, LOCK_FILE = ".claim.json", ".run.lock"
"""Of an address and of a folder on a disk."""
RENEW_SECONDS = 15.0
"""Time between two renewals of a claim."""
_LEFT_AFTER = 3 * RENEW_SECONDS
"""A claim that is not renewed for so long was left by a killed driver."""
_SETTLE_SECONDS = 2.0
"""Time between writing a claim and reading it back. Two drivers that begin at once differ by less."""


class RunClaim:
    """A driver's claim on an address. For a folder on a disk it does nothing.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Place):
        self.folder = folder
        self.token = uuid.uuid4().hex
        self._renewals = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, daemon=True)

    @property
    def _file(self) -> Place:
        return self.folder / CLAIM_FILE

    def require(self) -> None:
        """Raise ResumeError if another driver has claimed the folder since."""
        if isinstance(self.folder, ObjectPath) and not self._is_mine():
            raise ResumeError(
                f"another run has claimed {str(self.folder)!r} while this one was away: this run stops;"
                " wait for the end of the other run and run again"
            )

    def take(self, progress: ProgressSink) -> None:
        """Take the claim once no other driver renews its own.

        Raises:
            ResumeError: another driver writes to the folder.
            OutputError: the address cannot be read or written.
        """
        with writing(self._file):
            former = _read(self._file)
            if former is not None and not _is_left(former):
                progress(
                    f"{str(self.folder)!r} is claimed by process {former.get('pid')} on"
                    f" {former.get('host')!r}: waiting up to {_LEFT_AFTER:g} s to see if it still runs"
                )
                self._wait_for_end_of(former)
            self._write()
            time.sleep(_SETTLE_SECONDS)
            if not self._is_mine():
                raise ResumeError(_refusal(self.folder, _read(self._file) or {}))
        self._thread.start()

    def release(self) -> None:
        """Remove the claim, unless another driver has taken it."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self._is_mine():
                self._file.unlink(missing_ok=True)

    def _wait_for_end_of(self, former: dict[str, Any]) -> None:
        """Return once a claim is removed, or not renewed for `_LEFT_AFTER` seconds."""
        end = time.monotonic() + _LEFT_AFTER
        while time.monotonic() < end:
            time.sleep(_SETTLE_SECONDS)
            current = _read(self._file)
            if current is None:
                return
            if current != former:
                raise ResumeError(_refusal(self.folder, current))

    def _write(self) -> None:
        self._renewals += 1
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "boot": _boot_id()}
        content = {"token": self.token, "renewals": self._renewals} | owner
        write_text(self._file, json.dumps(content) + "\n")

    def _is_mine(self) -> bool:
        return (_read(self._file) or {}).get("token") == self.token

    def _keep_renewing(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            # While the storage is away the claim stays as it is. The next round renews it.
            with contextlib.suppress(Exception):
                if not self._is_mine():
                    return
                self._write()


@contextlib.contextmanager
def claimed(folder: Place, progress: ProgressSink = silent) -> Iterator[RunClaim]:
    """Claim the folder of a run for the block.

    Args:
        folder: The run's folder. On a disk it is created where it is missing.
        progress: Called with a line where another driver's claim is observed.

    Raises:
        ResumeError: another driver writes to the folder.
        OutputError: the address cannot be read or written.
    """
    claim = RunClaim(folder)
    if not isinstance(folder, ObjectPath):
        with contextlib.suppress(OSError):  # writing its record gives the reason
            folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(folder / LOCK_FILE) as is_locked:
            if not is_locked:
                raise ResumeError(
                    f"another process writes to {str(folder)!r}: wait for its end, or give another"
                    " output folder"
                )
            yield claim
        return
    claim.take(progress)
    try:
        yield claim
    finally:
        claim.release()


def holds_claim(folder: Place, token: str) -> bool:
    """Return whether the claim on an address has this token, for other processes of its run.

    Raises:
        OSError: the storage does not answer.
    """
    return (_read(folder / CLAIM_FILE) or {}).get("token") == token


def _refusal(folder: Place, owner: dict[str, Any]) -> str:
    return (
        f"another run writes to {str(folder)!r} (process {owner.get('pid')} on {owner.get('host')!r}):"
        " wait for its end, or give another output folder"
    )


def _read(file: Place) -> dict[str, Any] | None:
    """Return a claim, or None where there is none."""
    try:
        claim = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return claim if isinstance(claim, dict) else {}


def _is_left(claim: dict[str, Any]) -> bool:
    """Return whether a claim belongs to a process of this machine that is gone."""
    if (claim.get("host"), claim.get("boot")) != (socket.gethostname(), _boot_id()):
        return False
    try:
        os.kill(int(claim["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, ValueError):
        return False
    return False


def _boot_id() -> str:
    """Return what tells this machine's processes from those of another with its name."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        # Containers of one machine share the boot id and count their processes separately.
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""
