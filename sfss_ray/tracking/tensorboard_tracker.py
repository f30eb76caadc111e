"""A run in TensorBoard: event files in the run's output folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfss_ray.storage.places import ObjectPath, Place
from sfss_ray.tracking.tracker import require_package

EMBEDDED_TEXTS = {".json", ".txt"}
"""Files whose content is shown as text; TensorBoard has no artifacts."""


class TensorBoardTracker:
    """Writes scalars, texts and pictures as event files.

    `tensorboard --logdir runs` shows all runs below a folder. A resumed run adds another event
    file to the same folder, which TensorBoard joins.

    Args:
        folder: Folder or address where the event files go. For an address they are written in a
            temporary folder and uploaded at the end of the run.
    """

    def __init__(self, folder: Place):
        self.folder = folder

    def start(self, run_name: str, config: Mapping[str, Any]) -> None:
        """Open an event file and write the config as a table."""
        require_package("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._local = self.folder if isinstance(self.folder, Path) else Path(tempfile.mkdtemp())
        self._writer = SummaryWriter(str(self._local))
        rows = [f"| {name} | {value} |" for name, value in sorted(config.items())]
        self.log_text("config", "\n".join([f"| {run_name} | value |", "|---|---|", *rows]))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write scalars and flush them, so that a reader sees them at once."""
        for name, number in metrics.items():
            self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def log_text(self, name: str, text: str) -> None:
        """Write a text in Markdown."""
        self._writer.add_text(name, text)

    def log_artifact(self, path: Path) -> None:
        """Show a PNG as an image, a small text file as text, and the path of other files."""
        if path.suffix == ".png":
            from PIL import Image

            with Image.open(path) as picture:
                self._writer.add_image(path.stem, _pixels(picture), dataformats="HWC")
        elif path.suffix in EMBEDDED_TEXTS:
            self.log_text(path.name, f"```\n{path.read_text(encoding='utf-8')}\n```")
        else:
            self.log_text(path.name, str(path.resolve()))

    def finish(self, failed: bool) -> None:
        """Close the event file; TensorBoard does not store how a run ended."""
        self._writer.close()
        self._upload()

    def _upload(self) -> None:
        """Write the event files to their address, each whole, and remove their temporary folder.

        If the upload fails, the folder stays, because it holds the only copy.
        """
        if isinstance(self.folder, ObjectPath):
            for file in self._local.iterdir():
                (self.folder / file.name).upload(file)
            shutil.rmtree(self._local, ignore_errors=True)


def _pixels(picture: Any) -> Any:
    """Return a picture as (H, W, 3) uint8."""
    import numpy as np

    return np.asarray(picture.convert("RGB"))
