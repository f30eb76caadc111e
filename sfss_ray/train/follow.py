"""Showing the progress of a training that runs elsewhere, from its progress files."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sfss_ray.progress import ProgressSink


@contextlib.contextmanager
def following(folders: Callable[[], list[Path]], progress: ProgressSink) -> Iterator[None]:
    """Print new lines of the folders' progress files while the block runs.

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
    folders: Callable[[], list[Path]], progress: ProgressSink, stop: threading.Event
) -> None:
    from sfss_ray.train.run import read_progress

    seen = {folder: len(read_progress(folder)) for folder in folders()}
    ending = False
    while not ending:
        ending = stop.wait(1.0)  # one more look after the end
        for folder in folders():
            records = read_progress(folder)
            for record in records[seen.get(folder, 0) :]:
                progress(_progress_line(folder, record))
            seen[folder] = len(records)


def _progress_line(folder: Path, record: dict[str, Any]) -> str:
    shown = ("loss", "val_miou", "mask_information")
    values = ", ".join(f"{name} {record[name]:.3f}" for name in shown if name in record)
    return f"{folder.name}: step {record['step']}/{record['num_steps']}, {values}"
