"""Progress: plain lines in files and other sinks, bars on a terminal that other lines do not break."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from sfss_ray.runtime import progress as module
from sfss_ray.runtime.progress import Progress, duration, print_line, silent


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock that stands still until a test sets `now`, in seconds."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    return clock


def test_lines_name_the_rate_and_the_time_left(clock):
    lines: list[str] = []
    bar = Progress("masks", 100, lines.append)
    for now, count in ((1.0, 4), (4.0, 16), (5.0, 20), (50.0, 59), (50.5, 1)):
        clock.now = now
        bar.advance(count, ", 1 unreadable")
    assert lines == [
        "masks 20/100 (5.0/s, 16 s left), 1 unreadable",
        "masks 99/100 (2.0/s, 1 s left), 1 unreadable",
        "masks 100/100 (2.0/s), 1 unreadable",
    ], "none in the first two seconds, none a second after another, always one at the end"


def test_slow_work_shows_seconds_of_each_unit(clock):
    lines: list[str] = []
    bar = Progress("train", 400, lines.append)
    clock.now = 60.0
    bar.advance(10)
    assert lines == ["train 10/400 (6.0 s each, 39 min left)"]


def test_work_done_before_does_not_count_in_the_rate(clock):
    lines: list[str] = []
    bar = Progress("train", 100, lines.append, seconds=0, completed=80)
    bar.update(80, ", loss 1.000")
    clock.now = 5.0
    bar.update(90, ", loss 0.500")
    assert lines == [
        "train 80/100, loss 1.000",
        "train 90/100 (2.0/s, 5 s left), loss 0.500",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (40, "40 s"),
        (99.4, "99 s"),
        (100, "2 min"),
        (720, "12 min"),
        (12240, "3.4 h"),
        (181440, "2.1 days"),
    ],
)
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text


def test_characters_that_the_terminal_lacks_are_escaped(monkeypatch, tmp_path):
    with open(tmp_path / "out", "w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        print_line("Straße")
    assert (tmp_path / "out").read_text() == "Stra\\xdfe\n"


def test_output_that_is_no_terminal_gets_plain_lines(clock, capsys):
    with Progress("checked", 3) as bar:
        for _ in range(3):
            bar.advance(1)
    assert not bar.is_bar
    output = capsys.readouterr().out
    assert output == "checked 3/3\n", "a rate of an instant says nothing"


SCRIPT = """
import sys, time
from sfss_ray.runtime.progress import Progress, print_line
print_line("before")
with Progress("first", 3, seconds=0) as bar:
    for step in range(3):
        time.sleep(0.06)
        bar.advance(1, ", 1 unreadable")
        print("printed by other code", step)
    print("[bold]not markup[/bold]", file=sys.stderr)
try:
    bar = Progress("second", 3, seconds=0)
    bar.advance(1)
    raise ValueError("work failed")
except ValueError as error:
    print_line(str(error))
del bar
assert type(sys.stdout).__name__ == "TextIOWrapper"
print("after")
"""


def run_on_a_terminal(script: str, **environment: str) -> str:
    """What a program writes to a pseudo-terminal of 80 columns."""
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, bytes([24, 0, 80, 0, 0, 0, 0, 0]))
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=os.environ | {"TERM": "xterm"} | environment,
    ) as process:
        os.close(terminal)
        output = bytearray()
        try:
            while block := os.read(controller, 65536):
                output += block
        except OSError:  # Linux ends the stream of a closed terminal with an error
            pass
    os.close(controller)
    assert process.returncode == 0, output.decode()
    return output.decode()


def lines_that_stay(output: str) -> list[str]:
    """The lines of a terminal at the end: what is erased or overwritten is gone."""
    screen = []
    for line in output.split("\n"):
        kept = line.rstrip("\r").split("\x1b[2K")[-1]  # the control sequence that erases a line
        screen.append(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", kept).strip("\r"))
    return [line for line in screen if line]


def test_a_terminal_shows_bars_below_the_lines_of_other_code():
    output = run_on_a_terminal(SCRIPT)
    assert "━" in output
    assert "1/3" in output
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l"), "the cursor is shown at the end"
    lines = lines_that_stay(output)
    expected = [
        "before",
        "printed by other code 0",
        "printed by other code 1",
        r"first 3/3 \(\d+\.\d/s\), 1 unreadable",
        "printed by other code 2",
        r"\[bold\]not markup\[/bold\]",
        "work failed",
        "after",
    ]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line)


def test_a_terminal_without_cursor_control_gets_plain_lines():
    output = run_on_a_terminal(SCRIPT, TERM="dumb")
    assert "\x1b" not in output
    assert "first 1/3 (" in output


def test_a_log_file_has_no_carriage_returns_or_escapes():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        env=os.environ | {"FORCE_COLOR": "1"},
        check=True,
    )
    for stream in (done.stdout, done.stderr):
        assert b"\r" not in stream
        assert b"\x1b" not in stream
    assert done.stdout.count(b"first ") == 3
    assert done.stderr == b"[bold]not markup[/bold]\n"


@pytest.fixture
def terminal(monkeypatch):
    """Standard output says that it is a terminal; bars are recorded, not drawn."""
    monkeypatch.setattr(module, "_is_terminal", lambda stream: True)
    calls: list[tuple] = []
    bars = SimpleNamespace(
        add=lambda *row: calls.append(("add", *row)) or len(calls),
        update=lambda *row: calls.append(("update", *row)),
        remove=lambda row: calls.append(("remove", row)),
    )
    monkeypatch.setattr(module, "_BARS", bars)
    return calls


def test_a_bar_is_drawn_for_the_default_sink_only(terminal):
    assert not Progress("checked", 3, silent).is_bar
    assert not Progress("checked", 0).is_bar
    assert terminal == []
    bar = Progress("checked", 3)
    assert bar.is_bar
    assert terminal == [("add", "checked", 3, 0)]


def test_a_bar_goes_away_with_its_object(terminal):
    bar = Progress("checked", 3, seconds=0)
    bar.advance(1)
    del bar
    gc.collect()
    assert [call[0] for call in terminal] == ["add", "update", "remove"]


def test_a_finished_bar_is_removed_once_and_leaves_its_line(clock, terminal, capsys):
    with Progress("checked", 2, seconds=0) as bar:
        bar.advance(2, ", 1 unreadable")
        bar.advance(1)
    assert [call[0] for call in terminal] == ["add", "update", "remove"]
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["checked 2/2, 1 unreadable", "checked 3/2"], "more than the total is a line"


def test_an_interrupted_bar_leaves_its_last_line(clock, terminal, capsys):
    def fail() -> None:
        with Progress("checked", 9, seconds=0) as bar:
            bar.advance(4)
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "checked 4/9"
