"""A tracker that keeps its calls, and a small run sent to a tracker."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from PIL import Image

CONFIG = {"seed": 3, "train.loss.temperature": 0.1, "train.augment.crop_size": (64, 128)}
LOSSES = {1: 0.5, 2: 0.25, 3: 0.125}


class Recorder:
    """Keeps the calls; raises in the methods that are named."""

    def __init__(self, *failing: str):
        self.failing, self.calls = failing, []

    def __getattr__(self, method):
        if method not in ("start", "log_metrics", "log_text", "log_artifact", "finish"):
            raise AttributeError(method)

        def call(*arguments):
            self.calls.append((method, *arguments))
            if method in self.failing:
                raise OSError(f"{method} has no\nconnection")

        return call

    def numbers(self) -> dict[str, tuple[float, int]]:
        """Metric -> (value, step)."""
        logged = [call[1:] for call in self.calls if call[0] == "log_metrics"]
        return {
            name: (number, step) for metrics, step in logged for name, number in metrics.items()
        }

    def methods(self) -> list[str]:
        return [call[0] for call in self.calls]


def write_files(folder: Path) -> list[Path]:
    """A page, its JSON and a picture."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    (folder / "report.html").write_text("<h1>report</h1>")
    (folder / "report.json").write_text('{"schema_version": 1}')
    Image.fromarray(np.full((4, 6, 3), (200, 10, 30), np.uint8)).save(pictures / "01_a.png")
    return [folder / "report.html", folder / "report.json", pictures / "01_a.png"]


def send_run(tracker, files: list[Path], failed: bool = False) -> None:
    """A whole run; steps come from another thread, as those of a training do."""
    tracker.start("night", CONFIG)
    steps = threading.Thread(
        target=lambda: [tracker.log_metrics({"train/loss": v}, s) for s, v in LOSSES.items()]
    )
    steps.start()
    steps.join()
    # Two trials, the second of which is behind the first.
    tracker.log_metrics({"trial-a/loss": 0.75}, 20)
    tracker.log_metrics({"trial-b/loss": 1.5}, 10)
    tracker.log_text("results", "mIoU 50.0")
    for path in files:
        tracker.log_artifact(path)
    tracker.finish(failed)
