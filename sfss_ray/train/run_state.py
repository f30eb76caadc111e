"""State and progress of a training run, behind a small interface that needs no Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol

import torch

from sfss_ray.storage.files import read_torch, write_text, write_torch, writing
from sfss_ray.storage.places import ObjectPath, Place, to_place

PROGRESS_FILE = "progress.jsonl"
STOP_FILE = "stop"
"""Beside the progress file: the search asks the training's workers to end."""
STATE_FILE = "state.pt"
STATISTICS_FILE = "initial_statistics.pt"
"""BatchNorm statistics of the student before step 1."""


class Run(Protocol):
    """What the training loop needs from its surroundings."""

    rank: int
    """Of this worker, from 0."""
    world: int
    """Number of workers."""
    device: torch.device

    def resume_state(self) -> dict[str, Any] | None:
        """Return the newest checkpoint, or None in a new run."""
        ...

    def report(self, metrics: dict[str, Any], state: Callable[[], dict[str, Any]]) -> None:
        """Publish metrics and save `state()`. Every worker calls it, and rank 0 saves."""
        ...

    def is_preempted(self) -> bool:
        """Return whether a worker's node will go soon. Every worker calls it after the same steps."""
        ...

    def log(self, record: dict[str, Any]) -> None:
        """Append a record to the progress file. Only rank 0 calls it."""
        ...

    def save(self, name: str, content: dict[str, Any]) -> None:
        """Write a file beside the progress file. Only rank 0 calls it."""
        ...


def save_state(folder: Place, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all."""
    write_torch(folder / STATE_FILE, state)


def load_state(folder: Place) -> dict[str, Any]:
    """Read a checkpoint onto the CPU."""
    return read_torch(folder / STATE_FILE)


class ProgressLog:
    """The progress file of a training, a JSON line per record. One process at a time appends to it.

    On a disk a single write per line keeps the lines of a killed and of a resumed run apart. An object
    cannot grow, so it is written whole with each record.

    Args:
        folder: The file's folder, created when needed.
    """

    def __init__(self, folder: Place):
        self.path = folder / PROGRESS_FILE
        self._text: str | None = None

    def append(self, record: dict[str, Any]) -> None:
        """Append a record."""
        line = json.dumps(record) + "\n"
        with writing(self.path):
            if isinstance(self.path, ObjectPath):
                if self._text is None:
                    self._text = self.path.read_text() if self.path.exists() else ""
                self._text += line
                write_text(self.path, self._text)
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as file:
                file.write(line)


def read_progress(folder: Place) -> list[dict[str, Any]]:
    """Read the progress file, sorted by step.

    Records of one step are merged. Where a step was repeated after a resume, later values win.

    Returns:
        The records, none if there is no file yet.
    """
    path = folder / PROGRESS_FILE
    by_step: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
            by_step[record["step"]] = by_step.get(record["step"], {}) | record
        except (ValueError, KeyError):
            continue  # the process was killed while it wrote this line
    return [by_step[step] for step in sorted(by_step)]


class LocalRun:
    """A `Run` in this process, with one folder for checkpoint and progress.

    Args:
        folder: Created when needed; a path or an address.
        device: Name of a PyTorch device.
        on_report: Called with the metrics after each checkpoint. It may end the run by raising.
    """

    def __init__(
        self,
        folder: Place | str,
        device: str = "cpu",
        on_report: Callable[[dict[str, Any]], None] | None = None,
    ):
        self.rank, self.world = 0, 1
        self.device = torch.device(device)
        self.folder = to_place(folder)
        self._progress = ProgressLog(self.folder)
        self.on_report = on_report

    def resume_state(self) -> dict[str, Any] | None:
        """Return the folder's checkpoint, or None if there is none."""
        return load_state(self.folder) if (self.folder / STATE_FILE).exists() else None

    def report(self, metrics: dict[str, Any], state: Callable[[], dict[str, Any]]) -> None:
        """Save a checkpoint, then call `on_report`."""
        save_state(self.folder, state())
        if self.on_report:
            self.on_report(metrics)

    def is_preempted(self) -> bool:
        """Return False: nobody warns a process of this machine."""
        return False

    def log(self, record: dict[str, Any]) -> None:
        """Append a record to the folder's progress file."""
        self._progress.append(record)

    def save(self, name: str, content: dict[str, Any]) -> None:
        """Write a file into the folder."""
        write_torch(self.folder / name, content)
