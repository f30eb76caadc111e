"""Progress of trainings that run in other processes, read from their progress files."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from sfss_ray.runtime.progress import Progress, ProgressSink
from sfss_ray.storage.places import ObjectPath, ObjectStatus, Place
from sfss_ray.train.norm_record import STATISTICS_SHARE, describe_choice

RecordSink = Callable[[str, dict[str, Any]], None]
"""Called with the name of a training and a record of its progress file."""
LABELLED_SCORE = "val_miou"
AUTO_SCORE = "auto"
WORKERS = "workers"
"""Entry of a progress record: the number of workers, where it may change during the run."""
_LABEL_FREE_SCORES = ("anchored_information", "mask_information")
_POLL_SECONDS = 1.0
_REMOTE_POLL_SECONDS = 5.0
"""Requests to object storage cost time and money."""


@contextlib.contextmanager
def following(
    folders: Callable[[], dict[str, Place]],
    progress: ProgressSink,
    on_record: RecordSink | None = None,
    *,
    score: str = AUTO_SCORE,
) -> Iterator[None]:
    """Show the new steps of trainings while the block runs: loss, score and time left.

    Args:
        folders: Returns the folder of each training by its name. It is called again and again,
            because trials start one after the other.
        progress: Called with a line per logged step; the default sink draws a bar on a terminal.
        on_record: Called with the name of a training and each new record.
        score: Name of the score that trials are compared by. `auto` is val_miou where the training
            has labels, and a label-free score elsewhere.
    """
    stop = threading.Event()
    tail = _ProgressTail(_Files(folders), progress, on_record, score)
    thread = threading.Thread(target=tail.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Files:
    """The progress files of trainings. An object in storage is read only when it has changed."""

    def __init__(self, folders: Callable[[], dict[str, Place]]):
        self.folders = folders
        self.poll_seconds = _POLL_SECONDS
        self._objects: dict[str, tuple[ObjectStatus, list[dict[str, Any]]]] = {}

    def read(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yield the records of each training by its name; storage that is away yields nothing new."""
        from sfss_ray.train.run_state import read_progress

        with contextlib.suppress(OSError):
            for name, folder in self.folders().items():
                if isinstance(folder, ObjectPath):
                    self.poll_seconds = _REMOTE_POLL_SECONDS
                    yield name, self._read_object(name, folder)
                else:
                    yield name, read_progress(folder)

    def _read_object(self, name: str, folder: ObjectPath) -> list[dict[str, Any]]:
        from sfss_ray.train.run_state import PROGRESS_FILE, read_progress

        try:
            status = (folder / PROGRESS_FILE).stat()
        except FileNotFoundError:
            return []
        if name not in self._objects or self._objects[name][0] != status:
            self._objects[name] = status, read_progress(folder)
        return self._objects[name][1]


class _ProgressTail:
    """Shows the records that are added to progress files."""

    def __init__(
        self,
        files: _Files,
        progress: ProgressSink,
        on_record: RecordSink | None,
        score: str,
    ) -> None:
        self.files, self.progress = files, progress
        self.on_record, self.score = on_record, score
        self._bars: dict[str, Progress] = {}
        self._latest: dict[str, dict[str, Any]] = {}
        # Records of an earlier call were shown by that call.
        self._counts = {name: len(records) for name, records in self.files.read()}

    def run(self, stop: threading.Event) -> None:
        """Poll the files until `stop` is set, and once more after it."""
        stopped = False
        while not stopped:
            stopped = stop.wait(self.files.poll_seconds)
            for name, records in self.files.read():
                for record in records[self._counts.get(name, 0) :]:
                    self._show(name, record)
                    if self.on_record is not None:
                        self.on_record(name, record)
                self._counts[name] = len(records)
        for bar in self._bars.values():
            bar.close()

    def _show(self, name: str, record: dict[str, Any]) -> None:
        step, num_steps = record["step"], record["num_steps"]
        if STATISTICS_SHARE in record:
            self.progress(f"{name}: {describe_choice(record)}")
            return
        if name not in self._bars:
            # The clock starts with the first record: starting workers takes time of its own.
            self._bars[name] = Progress(name, num_steps, self.progress, seconds=0, completed=step)
        bar = self._bars[name]
        # Scores are logged at every evaluation only, and a bar keeps showing the last ones.
        self._latest[name] = self._latest.get(name, {}) | record
        bar.update(step, _note(self._latest[name] if bar.is_bar else record, self.score))


def _note(record: dict[str, Any], score: str) -> str:
    """Return the values of a record to show: ', loss 0.512, anchored_information 0.634'."""
    chosen_by_labels = score in (AUTO_SCORE, LABELLED_SCORE) and LABELLED_SCORE in record
    # The balanced score needs masks of the held-out images. Where it is absent, the next best is shown.
    candidates = (LABELLED_SCORE,) if chosen_by_labels else (score, *_LABEL_FREE_SCORES)
    score_name = next((name for name in candidates if name in record), score)
    notes = [f"{name} {record[name]:.3f}" for name in ("loss", score_name) if name in record]
    if LABELLED_SCORE in record and not chosen_by_labels:
        notes.append(f"{LABELLED_SCORE} {record[LABELLED_SCORE]:.3f} (not used for the choice)")
    if (workers := record.get(WORKERS)) is not None:
        notes.append(f"{workers} worker{'' if workers == 1 else 's'}")
    return "".join(f", {note}" for note in notes)
