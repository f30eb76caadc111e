"""Commands end in an exit code and at most one line of error."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable

from sfss_ray.errors import SfssError
from sfss_ray.runtime.threads import keep_freed_memory
from sfss_ray.storage.addresses import without_secret
from sfss_ray.storage.files import unusable_line

INTERRUPTED = 130


def run_guarded(work: Callable[[], int | None]) -> int:
    """Run a command and return its exit code.

    That is the code that `work` returns, or 0. An SfssError becomes one line and code 2, and so does an
    OSError that names a file. Ctrl-C becomes code 130. SIGTERM is treated as Ctrl-C, so that a job that
    is stopped ends its cluster too. Printed lines are written before it returns, so that a closed pipe
    or a full disk behind them is seen too.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal whose encoding lacks a character
            stream.reconfigure(errors="backslashreplace")
    keep_freed_memory()
    try:
        code = work() or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except (Exception, KeyboardInterrupt) as error:
        exit_code = _report(error)
        if exit_code is None:
            raise
        return exit_code


def _report(error: BaseException) -> int | None:
    """Tell the user about an expected error and return the exit code; None for any other error."""
    if _is_interruption(error):
        print("interrupted: run the same command again to resume", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        _drop_unwritten_lines()
        return 0
    line = str(error) if isinstance(error, SfssError) else None
    if isinstance(error, OSError):
        _drop_unwritten_lines()
        line = unusable_line(error)
    if line is None:
        return None
    # Messages name places without passwords, but a path may be an address that nothing has parsed.
    print(f"error: {without_secret(line)}", file=sys.stderr)
    return 2


def _drop_unwritten_lines() -> None:
    """Send printed lines that cannot be written to nowhere: Python would try again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_interruption(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C, or was raised while a library cleaned up after it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
