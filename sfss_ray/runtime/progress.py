"""Progress lines of long work: what is done, how fast, how long it will take still."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

ProgressSink = Callable[[str], None]


def print_line(text: str) -> None:
    r"""The default sink: one line on standard output, at once.

    Characters that the terminal's encoding lacks are written as \xNN.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def silent(text: str) -> None:
    """A sink for those who want no lines."""


class Progress:
    """Prints `name done/total, rate, time left` at most every `seconds`, and always at the end."""

    def __init__(
        self, name: str, total: int, sink: ProgressSink = print_line, seconds: float = 2.0
    ):
        self.name, self.total, self.sink, self.seconds = name, total, sink, seconds
        self.done = 0
        self.started = self.printed = time.monotonic()

    def advance(self, number: int, note: str = "") -> None:
        """Count `number` more as done; `note` is put behind the line."""
        self.done += number
        now = time.monotonic()
        if now - self.printed < self.seconds and self.done < self.total:
            return
        self.printed = now
        rate = self.done / max(now - self.started, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        timing = f"{rate:.1f}/s, {left:.0f} s left" if self.done < self.total else f"{rate:.1f}/s"
        self.sink(f"{self.name} {self.done}/{self.total} ({timing}){note}")
