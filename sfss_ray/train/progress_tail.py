"""Showing the progress of a training that runs elsewhere, from its progress files."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sfss_ray.runtime.progress import ProgressSink


@contextlib.contextmanager
def following(folders: Callable[[], dict[str, Path]], progress: ProgressSink) -> Iterator[None]:
    """Print new lines of the folders' progress files while the block runs, with the folders' names.

    `folders` is asked again at each look, because trials start one after the other.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(folders, progress, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _follow(
    folders: Callable[[], dict[str, Path]], progress: ProgressSink, stop: threading.Event
) -> None:
    from sfss_ray.train.run_state import read_progress

    seen = {name: len(read_progress(folder)) for name, folder in folders().items()}
    ending = False
    while not ending:
        ending = stop.wait(1.0)  # one more look after the end
        for name, folder in folders().items():
            records = read_progress(folder)
            for record in records[seen.get(name, 0) :]:
                progress(_progress_line(name, record))
            seen[name] = len(records)


def _progress_line(name: str, record: dict[str, Any]) -> str:
    shown = ("loss", "val_miou", "mask_information")
    values = ", ".join(f"{value} {record[value]:.3f}" for value in shown if value in record)
    return f"{name}: step {record['step']}/{record['num_steps']}, {values}"
