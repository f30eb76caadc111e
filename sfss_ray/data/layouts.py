"""Data sets as they lie on disk: which folders hold images, and which their labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sfss_ray.data.folders import require_folder
from sfss_ray.errors import DataError

Folders = tuple[Path, Path]
"""Of images, and of their labels."""


@dataclass(frozen=True)
class Layout:
    """Folders of one data set. `folders`: (images, labels) below its root, several for splits."""

    name: str
    folders: tuple[tuple[str, str], ...]
    beside: tuple[tuple[str, str], ...] = ()
    """Further folders, which do not make the layout by themselves."""

    def found(self, root: Path) -> tuple[Folders, ...]:
        """The pairs of folders that exist; none unless one of `folders` does."""
        main = _existing(root, self.folders)
        return main + (_existing(root, self.beside) if main else ())


def _existing(root: Path, folders: tuple[tuple[str, str], ...]) -> tuple[Folders, ...]:
    pairs = ((root / images, root / labels) for images, labels in folders)
    return tuple(pair for pair in pairs if all(folder.is_dir() for folder in pair))


_SPLITS = ("train", "val", "test")
_FOGGY = ("leftImg8bit_foggy", "leftImg8bit_foggyDBF", "leftImg8bit_rain")
_EXTRA = "train_extra"
LAYOUTS = (
    Layout(
        "cityscapes",
        (("leftImg8bit", "gtFine"),),
        (*((foggy, "gtFine") for foggy in _FOGGY), (f"leftImg8bit/{_EXTRA}", f"gtCoarse/{_EXTRA}")),
    ),
    Layout("foggy cityscapes", tuple((foggy, "gtFine") for foggy in _FOGGY)),
    Layout("cityscapes gtCoarse", (("leftImg8bit", "gtCoarse"),)),
    Layout("acdc or dark zurich", (("rgb_anon", "gt"),)),
    Layout("synthia", (("RGB", "GT/LABELS"),)),
    Layout("bdd100k", (("images/10k", "labels/sem_seg/masks"), ("seg/images", "seg/labels"))),
    Layout("camvid (SegNet)", tuple((split, f"{split}annot") for split in _SPLITS)),
    Layout("camvid", (("701_StillsRaw_full", "LabeledApproved_full"),)),
    Layout("camvid", tuple((split, f"{split}_labels") for split in _SPLITS)),
    Layout("images and labels", (("images", "labels"),)),
)
"""GTA5, CamVid and plain folders all have images/ and labels/: their label files tell them apart."""
_NAMES = {"gta5": "gta5", "synthia": "synthia", "camvid": "camvid", "camvid_colours": "camvid"}
_CONDITIONS = ("fog", "rain", "snow")


@dataclass(frozen=True)
class FoundLayout:
    """A recognised tree."""

    name: str
    folders: tuple[Folders, ...]

    def name_with(self, label_format: str, label_name: str = "") -> str:
        """The data set's name, once the encoding of its labels and a label's name are known."""
        if self.name == "cityscapes" and (
            label_format.startswith("idd_") or "_labelcs" in label_name
        ):
            return "idd"
        if self.name == "images and labels":
            if label_name.endswith("_train_id"):
                return "bdd100k"
            return _NAMES.get(label_format, "plain folder")
        return self.name


def _with_conditions(name: str, images: Path) -> str:
    """ACDC has a folder for each condition; Dark Zurich has times of day below its splits."""
    if name != "acdc or dark zurich":
        return name
    if any((images / condition).is_dir() for condition in _CONDITIONS):
        return "acdc"
    nights = any((images / split / "night").is_dir() for split in _SPLITS)
    return "dark zurich" if nights else name


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
            return FoundLayout(_with_conditions(layout.name, folders[0][0]), folders)
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
