"""Data sets as they lie on disk: which folders hold images, and which their labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sfss_ray.data.folders import require_folder
from sfss_ray.errors import DataError


@dataclass(frozen=True)
class Layout:
    """Folders of one data set. `folders`: (images, labels) below its root, several for splits."""

    name: str
    folders: tuple[tuple[str, str], ...]

    def found(self, root: Path) -> tuple[tuple[Path, Path], ...]:
        """The pairs of folders that are there."""
        pairs = ((root / images, root / labels) for images, labels in self.folders)
        return tuple(pair for pair in pairs if all(folder.is_dir() for folder in pair))


_SPLITS = ("train", "val", "test")
LAYOUTS = (
    Layout("cityscapes", (("leftImg8bit", "gtFine"),)),
    Layout("synthia", (("RGB", "GT/LABELS"),)),
    Layout("camvid (SegNet)", tuple((split, f"{split}annot") for split in _SPLITS)),
    Layout("images and labels", (("images", "labels"),)),
)
"""GTA5, CamVid and plain folders all have images/ and labels/: their label files tell them apart."""
_NAMES = {"gta5": "gta5", "synthia": "synthia", "camvid": "camvid"}


@dataclass(frozen=True)
class FoundLayout:
    """A recognised tree."""

    name: str
    folders: tuple[tuple[Path, Path], ...]

    def name_with(self, label_format: str) -> str:
        """The data set's name, once the encoding of its labels is known."""
        if self.name != "images and labels":
            return self.name
        return _NAMES.get(label_format, "plain folder")


def find_layout(root: Path | str, labels: Path | str | None = None) -> FoundLayout:
    """The layout of a folder; with `labels` the two folders are taken as they are.

    Raises DataError with what was expected and what was found.
    """
    path = require_folder(root, "data set")
    if labels is not None:
        return FoundLayout("images and labels", ((path, require_folder(labels, "labels")),))
    for layout in LAYOUTS:
        folders = layout.found(path)
        if folders:
            return FoundLayout(layout.name, folders)
    raise DataError(_unknown(path))


def _unknown(path: Path) -> str:
    expected = "; ".join(
        f"{layout.name}: {' or '.join(f'{images}/ + {labels}/' for images, labels in layout.folders)}"
        for layout in LAYOUTS
    )
    return (
        f"data set {str(path)!r} has no known layout. Expected: {expected}. Found: {_content(path)}."
        " Give the folder above these, or name the two folders: DIR --labels DIR"
    )


def _content(folder: Path) -> str:
    names = sorted(f"{e.name}/" if e.is_dir() else e.name for e in folder.iterdir())
    if not names:
        return "nothing, the folder is empty"
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
