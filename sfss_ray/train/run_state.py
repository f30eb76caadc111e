"""Where a training run keeps its state, behind one small interface that needs no Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from sfss_ray.storage.files import write_torch, writing

PROGRESS_FILE = "progress.jsonl"
STATE_FILE = "state.pt"


class Run(Protocol):
    """What the training loop needs of its surroundings."""

    rank: int
    world: int
    device: torch.device

    def resume_state(self) -> dict[str, Any] | None:
        """The newest saved state, or None at the beginning."""
        ...

    def report(self, metrics: dict[str, Any], state: Callable[[], dict[str, Any]]) -> None:
        """Publish metrics and save `state()`; every worker calls it, rank 0 saves."""
        ...

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to the progress file (rank 0)."""
        ...


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a state, whole or not at all."""
    write_torch(folder / STATE_FILE, state)


def load_state(folder: Path) -> dict[str, Any]:
    """Read a state onto the CPU."""
    return torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)


def append_progress(folder: Path, record: dict[str, Any]) -> None:
    """One JSON line; a single write, so that lines of a killed and a resumed run do not mix."""
    path = folder / PROGRESS_FILE
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            file.write(json.dumps(record) + "\n")


def read_progress(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run by step, sorted; of a step that was repeated after a resume the last."""
    path = folder / PROGRESS_FILE
    by_step: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
            by_step[record["step"]] = by_step.get(record["step"], {}) | record
        except (ValueError, KeyError):
            continue  # the line that was being written when the process was killed
    return [by_step[step] for step in sorted(by_step)]


class LocalRun:
    """A run in this process, with its state in one folder."""

    def __init__(
        self,
        folder: Path | str,
        device: str = "cpu",
        on_report: Callable[[dict[str, Any]], None] | None = None,
    ):
        self.rank, self.world = 0, 1
        self.device = torch.device(device)
        self.folder = Path(folder)
        self.on_report = on_report

    def resume_state(self) -> dict[str, Any] | None:
        """The state in the folder, if there is one."""
        return load_state(self.folder) if (self.folder / STATE_FILE).exists() else None

    def report(self, metrics: dict[str, Any], state: Callable[[], dict[str, Any]]) -> None:
        """Save, then tell `on_report`, which may end the run by raising."""
        save_state(self.folder, state())
        if self.on_report:
            self.on_report(metrics)

    def log(self, record: dict[str, Any]) -> None:
        """Append to the folder's progress file."""
        append_progress(self.folder, record)
