"""Progress of long work: bars on a terminal, plain lines in files, logs and other sinks."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

ProgressSink = Callable[[str], None]
_LINE_SECONDS, _BAR_SECONDS = 2.0, 0.1
_MIN_TIMED_SECONDS = 1e-3  # a rate of a shorter time says nothing


def print_line(text: str) -> None:
    r"""Print one line on standard output and flush it; the default sink.

    Characters that the terminal's encoding lacks are written as \xNN.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def silent(text: str) -> None:
    """Drop a line; the sink of callers who want no progress."""


def duration(seconds: float) -> str:
    """Format seconds for people: '40 s', '12 min', '3.4 h', '2.1 days'."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


class Progress:
    """Progress of one piece of work: what is done, how fast, and the time left.

    With the default sink on a terminal this is a bar, which leaves its last line behind. Elsewhere it
    is lines `NAME DONE/TOTAL (RATE, TIME left)NOTE`, at most one every `seconds` and always one at
    the end. The bar goes away with `close`, with the end of a `with` block, or with the object.
    """

    def __init__(
        self,
        name: str,
        total: int,
        sink: ProgressSink = print_line,
        seconds: float | None = None,
        completed: int = 0,
    ):
        """
        Args:
            name: What is counted, in front of the numbers.
            total: Units of work in all.
            sink: Called with each line; the default one draws a bar on a terminal.
            seconds: Least time between lines, or between redraws of a bar; default 2 and 0.1.
            completed: Units that were done before; they do not count in the rate.
        """
        self.name, self.total, self.sink, self.completed = name, total, sink, completed
        self._first_completed = completed
        self._started = self._shown = time.monotonic()
        self._last_line = ""
        self.is_bar = total > completed and sink is print_line and _is_terminal(sys.stdout)
        if self.is_bar:
            self._row = _BARS.add(name, total, completed)
            # The row must not outlive this object, whatever error ends the work.
            self._remove_row = weakref.finalize(self, _BARS.remove, self._row)
        default = _BAR_SECONDS if self.is_bar else _LINE_SECONDS
        self._seconds = default if seconds is None else seconds

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, count: int, note: str = "") -> None:
        """Count `count` more units as done; `note` is appended to the line."""
        self.update(self.completed + count, note)

    def update(self, completed: int, note: str = "") -> None:
        """Set the number of units that are done; `note` is appended to the line."""
        self.completed = completed
        now = time.monotonic()
        is_finished = completed >= self.total
        if now - self._shown < self._seconds and not is_finished:
            return
        self._shown = now
        timing = self._timing(now - self._started)
        self._last_line = (
            f"{self.name} {completed}/{self.total}{f' ({timing})' if timing else ''}{note}"
        )
        if not self._is_open():
            self.sink(self._last_line)
            return
        _BARS.update(self._row, completed, f"{timing}{note}".removeprefix(", "))
        if is_finished:
            self.close()

    def close(self) -> None:
        """Remove the bar from the terminal and leave its last line behind."""
        if self._is_open():
            self._remove_row()
            if self._last_line:
                self.sink(self._last_line)

    def _is_open(self) -> bool:
        return self.is_bar and self._remove_row.alive

    def _timing(self, seconds: float) -> str:
        """Return rate and time left; empty where too little was done to tell."""
        count = self.completed - self._first_completed
        if not count or seconds < _MIN_TIMED_SECONDS:
            return ""
        seconds_each = seconds / count
        rate = f"{seconds_each:.1f} s each" if seconds_each >= 1.05 else f"{1 / seconds_each:.1f}/s"
        remaining = self.total - self.completed
        return f"{rate}, {duration(remaining * seconds_each)} left" if remaining > 0 else rate


def _is_terminal(stream: Any) -> bool:
    isatty = getattr(stream, "isatty", None)
    return isatty is not None and isatty() and os.environ.get("TERM") != "dumb"


class _TerminalBars:
    """The bars of all open `Progress` objects, at the bottom of the terminal.

    While a bar is open, rich shows lines that any code prints above the bars. There is no thread that
    redraws: processes may be forked meanwhile.
    """

    def __init__(self) -> None:
        self._display: Any = None
        self._lock = threading.RLock()

    def add(self, name: str, total: int, completed: int) -> int:
        """Open a bar; returns its row."""
        with self._lock:
            if self._display is None:
                self._display = _start_display()
            return self._display.add_task(name, total=total, completed=completed, detail="")

    def update(self, row: int, completed: int, detail: str) -> None:
        """Redraw a bar."""
        with self._lock:
            self._display.update(row, completed=completed, detail=detail, refresh=True)

    def remove(self, row: int) -> None:
        """Close a bar; the last one restores standard output."""
        with self._lock:
            self._display.remove_task(row)
            if self._display.task_ids:
                self._display.refresh()
            else:
                self._display.stop()
                self._display = None


_BARS = _TerminalBars()


def _start_display() -> Any:
    # Only a terminal needs rich, and its import takes a while.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Display
    from rich.table import Column

    display = Display(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        # On a narrow terminal this column wraps, and the others keep their width.
        TextColumn("{task.fields[detail]}", markup=False, table_column=Column(no_wrap=False)),
        console=Console(highlight=False),
        auto_refresh=False,
        transient=True,
        redirect_stderr=_is_terminal(sys.stderr),  # errors that go to a file stay there
    )
    display.start()
    display.console.show_cursor(True)  # a killed process could not bring it back
    return display
