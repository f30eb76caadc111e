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


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENAMETOOLONG, errno.EROFS, errno.EIO])
def test_an_error_of_a_file_is_one_line(capsys, number):
    """pathlib raises them for a folder that may not be entered, even where it only asks for a file."""
    error = OSError(number, os.strerror(number), "/data/images")
    line = one_error(cli.run_guarded(raising(error)), capsys.readouterr().err)
    assert line == (
        f"error: '/data/images' cannot be used ({os.strerror(number)}): check the path and its"
        " permissions"
    )


def test_an_error_of_the_system_without_a_file_is_raised():
    with pytest.raises(OSError, match="Connection refused"):
        cli.run_guarded(raising(OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))))


LONG = "/tmp/" + 300 * "x"
COMMANDS = {
    "images": f"verify --source-model @source.pt --images {LONG}",
    "model": f"predict {LONG} @images @new",
    "output": f"predict @source.pt @images {LONG}",
    "labels": f"evaluate --model @source.pt --images @images --labels {LONG}",
    "architecture": f"evaluate --model @source.pt --images @images --labels @labels --architecture"
    f" {LONG}.py:net",
    "masks": f"masks inspect {LONG}",
    "masks to export": f"masks export {LONG} @new",
    "masks to import": f"masks import {LONG} @images @new",
    "data": f"data check {LONG}",
    "pretraining": f"pretrain --images {LONG} --labels @labels --output-dir @new",
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_path_that_is_too_long_is_one_line(words, data, tmp_path, capsys):
    line = words.replace("@new", str(tmp_path / "new")).replace("@", f"{data}/")
    message = one_error(cli.main(line.split()), capsys.readouterr().err)
    assert "xxx" in message
    assert "(File name too long): check the path and its permissions" in message


def test_no_message_shows_a_password(capsys):
    error = DataError("images: 's3:/user:secret@fleet/a' does not exist; give another path")
    line = one_error(cli.run_guarded(raising(error)), capsys.readouterr().err)
    assert line == "error: images: 's3:/fleet/a' does not exist; give another path"
