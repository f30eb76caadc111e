"""Showing the progress of a training that runs elsewhere, from its progress files."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sfss_ray.runtime.progress import ProgressSink

RecordSink = Callable[[str, dict[str, Any]], None]
"""Called with the name of a training and a record of its progress file."""


@contextlib.contextmanager
def following(
    folders: Callable[[], dict[str, Path]],
    progress: ProgressSink,
    on_record: RecordSink | None = None,
) -> Iterator[None]:
    """Print new lines of the folders' progress files while the block runs, with the folders' names.

    `on_record` is called with the folder's name and each new record.

    `folders` is asked again at each look, because trials start one after the other.
    """
    from sfss_ray.train.run_state import read_progress

    # Records of an earlier call were shown by that call.
    counts = {name: len(read_progress(folder)) for name, folder in folders().items()}
    stop = threading.Event()
    thread = threading.Thread(
        target=_follow, args=(folders, progress, stop, counts, on_record), daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _follow(
    folders: Callable[[], dict[str, Path]],
    progress: ProgressSink,
    stop: threading.Event,
    seen: dict[str, int],
    on_record: RecordSink | None = None,
) -> None:
    from sfss_ray.train.run_state import read_progress

    ending = False
    while not ending:
        ending = stop.wait(1.0)  # one more look after the end
        for name, folder in folders().items():
            records = read_progress(folder)
            for record in records[seen.get(name, 0) :]:
                progress(_progress_line(name, record))
                if on_record:
                    on_record(name, record)
            seen[name] = len(records)


def _progress_line(name: str, record: dict[str, Any]) -> str:
    shown = ("loss", "val_miou", "mask_information")
    values = ", ".join(f"{value} {record[value]:.3f}" for value in shown if value in record)
    return f"{name}: step {record['step']}/{record['num_steps']}, {values}"
