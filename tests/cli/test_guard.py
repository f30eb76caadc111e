"""Commands end in an exit code and at most one line of error."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

import pytest
from cli_samples import one_error

from sfss_ray import cli
from sfss_ray.errors import DataError


def raising(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_errors_of_the_package_are_one_line_and_others_are_raised(capsys):
    code = cli.run_guarded(raising(DataError("nothing there: give more")))
    assert one_error(code, capsys.readouterr().err) == "error: nothing there: give more"
    with pytest.raises(ZeroDivisionError):
        cli.run_guarded(raising(ZeroDivisionError()))


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (13, 13)])
def test_the_exit_code_is_that_of_the_work(returned, code):
    assert cli.run_guarded(lambda: returned) == code


def test_an_interrupt_prints_how_to_resume(capsys):
    assert cli.run_guarded(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to resume\n"
    assert cli.run_guarded(lambda: signal.raise_signal(signal.SIGTERM)) == 130


def test_an_error_while_cleaning_up_after_an_interrupt_is_an_interrupt(capsys):
    """Libraries whose threads still work may raise errors of their own when they are stopped."""

    def work() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise ValueError("generator already executing")

    assert cli.run_guarded(work) == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to resume\n"


def test_a_full_disk_below_any_work_is_one_line(capsys):
    """Libraries write files too: Ray's own files, for instance."""
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/ray/x")
    line = one_error(cli.run_guarded(raising(error)), capsys.readouterr().err)
    assert "No space left on device: '/tmp/ray/x'" in line
    assert "free some space and run again" in line
