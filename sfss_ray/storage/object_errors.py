"""Errors of object storage: which ones pass by themselves, and what they mean in a few words."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")

RETRY_SECONDS = 60.0
"""How long an operation is repeated while the storage does not answer. Arrow's own retries take about
6 s of it each time."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0
_TRANSIENT = re.compile(
    r"SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTL|REQUEST_TIMEOUT|HTTP status 5\d\d"
    r"|curlCode: (7|18|28|52|55|56)\b|UNAVAILABLE|ServerBusy|OperationTimedOut"
)
_MEANINGS = (
    (r"NO_SUCH_BUCKET", "there is no such bucket"),
    (
        r"ACCESS_DENIED|HTTP status 403|INVALID_ACCESS_KEY|SIGNATURE|MISSING_AUTHENTICATION",
        "access is denied",
    ),
    (r"curlCode: 6\b", "its server is unknown"),
    (r"AuthenticationException", "this machine has no credentials for it"),
)


def patiently(work: Callable[[], _Result]) -> _Result:
    """Return the result of an operation on object storage, repeated while the storage is away.

    Raises:
        OSError: the operation failed, or the storage did not answer for `RETRY_SECONDS`.
    """
    end, pause = time.monotonic() + RETRY_SECONDS, _FIRST_PAUSE
    while True:
        try:
            return _once(work)
        except OSError as error:
            if not _TRANSIENT.search(str(error)) or time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _once(work: Callable[[], _Result]) -> _Result:
    """Run an operation. Azure's client reports absent credentials as an error of no kind."""
    try:
        return work()
    except Exception as error:
        # By name, because a config is read without pyarrow.
        if type(error).__name__ == "ArrowException":
            raise OSError(str(error)) from error
        raise


def is_missing_bucket(error: Exception) -> bool:
    """Return whether an operation failed because there is no such bucket."""
    return "NO_SUCH_BUCKET" in str(error) or isinstance(error, FileNotFoundError)


def meaning_of(error: Exception, length: int = 200) -> str:
    """Return why an operation failed, in one line without the numbers of the request."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    for pattern, meaning in _MEANINGS:
        if re.search(pattern, text):
            return meaning
    if _TRANSIENT.search(text):
        return f"it did not answer for {RETRY_SECONDS:g} s"
    return re.sub(r" \(Request ID:[^)]*\)", "", text)[:length]
