"""Directory layouts of data sets: which folders hold images, and which hold their labels."""

from __future__ import annotations

from dataclasses import dataclass

from sfss_ray.data.folders import require_folder
from sfss_ray.errors import DataError
from sfss_ray.storage.places import Place

Folders = tuple[Place, Place]
"""A folder of images and the folder of their labels."""


@dataclass(frozen=True)
class DatasetLayout:
    """The layout of one data set."""

    name: str
    folders: tuple[tuple[str, str], ...]
    """(images, labels) below the root; several pairs for splits. One existing pair is enough."""
    extra_folders: tuple[tuple[str, str], ...] = ()
    """Further pairs that are used if they exist, but do not identify the layout."""

    def existing_folders(self, root: Place) -> tuple[Folders, ...]:
        """Return the pairs of folders that exist below a root, or () if none of `folders` does."""
        existing = _existing(root, self.folders)
        return existing + (_existing(root, self.extra_folders) if existing else ())


def _existing(root: Place, folders: tuple[tuple[str, str], ...]) -> tuple[Folders, ...]:
    pairs = ((root / images, root / labels) for images, labels in folders)
    return tuple(pair for pair in pairs if all(folder.is_dir() for folder in pair))


_SPLITS = ("train", "val", "test")
_FOGGY = ("leftImg8bit_foggy", "leftImg8bit_foggyDBF", "leftImg8bit_rain")
_EXTRA = "train_extra"
LAYOUTS = (
    DatasetLayout(
        "cityscapes",
        (("leftImg8bit", "gtFine"),),
        (*((foggy, "gtFine") for foggy in _FOGGY), (f"leftImg8bit/{_EXTRA}", f"gtCoarse/{_EXTRA}")),
    ),
    DatasetLayout("foggy cityscapes", tuple((foggy, "gtFine") for foggy in _FOGGY)),
    DatasetLayout("cityscapes gtCoarse", (("leftImg8bit", "gtCoarse"),)),
    DatasetLayout("acdc or dark zurich", (("rgb_anon", "gt"),)),
    DatasetLayout("synthia", (("RGB", "GT/LABELS"),)),
    DatasetLayout(
        "bdd100k", (("images/10k", "labels/sem_seg/masks"), ("seg/images", "seg/labels"))
    ),
    DatasetLayout("camvid (SegNet)", tuple((split, f"{split}annot") for split in _SPLITS)),
    DatasetLayout("camvid", (("701_StillsRaw_full", "LabeledApproved_full"),)),
    DatasetLayout("camvid", tuple((split, f"{split}_labels") for split in _SPLITS)),
    DatasetLayout("images and labels", (("images", "labels"),)),
)
"""Known layouts, tried in this order.

GTA5, CamVid and plain folders all have images/ and labels/; only their label files differ.
"""
_NAME_OF_FORMAT = {
    "gta5": "gta5",
    "synthia": "synthia",
    "camvid": "camvid",
    "camvid_colours": "camvid",
    "mapillary": "mapillary",
}
"""Label format -> data set, for folders called images/ and labels/."""
_ACDC_CONDITIONS = ("fog", "rain", "snow")


@dataclass(frozen=True)
class FoundLayout:
    """A recognised layout and its existing folders."""

    name: str
    folders: tuple[Folders, ...]

    def name_with(self, label_format: str, label_name: str = "") -> str:
        """Return the name of the data set, given its label format and the name of a label file."""
        if self.name == "cityscapes" and (
            label_format.startswith("idd_") or "_labelcs" in label_name
        ):
            return "idd"
        if self.name == "images and labels":
            if label_name.endswith("_train_id"):
                return "bdd100k"
            return _NAME_OF_FORMAT.get(label_format, "plain folder")
        return self.name


def _tell_acdc_from_zurich(name: str, images: Place) -> str:
    """Return acdc or dark zurich, which share a layout.

    ACDC has a folder per weather condition; Dark Zurich has times of day below its splits.
    """
    if name != "acdc or dark zurich":
        return name
    if any((images / condition).is_dir() for condition in _ACDC_CONDITIONS):
        return "acdc"
    has_night = any((images / split / "night").is_dir() for split in _SPLITS)
    return "dark zurich" if has_night else name


def find_layout(root: Place | str, labels: Place | str | None = None) -> FoundLayout:
    """Return the layout of a data set.

    Args:
        root: Root of the data set; with `labels` the folder of images.
        labels: Folder of label maps. If it is named, both folders are used without a search.

    Raises:
        DataError: a folder is missing, or the layout is unknown; names the known layouts and the
            entries of the folder.
    """
    path = require_folder(root, "data set")
    if labels is not None:
        return FoundLayout("images and labels", ((path, require_folder(labels, "labels")),))
    for layout in LAYOUTS:
        folders = layout.existing_folders(path)
        if folders:
            return FoundLayout(_tell_acdc_from_zurich(layout.name, folders[0][0]), folders)
    raise DataError(_unknown_layout_error(path))


def _unknown_layout_error(path: Place) -> str:
    expected = "; ".join(
        f"{layout.name}: {' or '.join(f'{images}/ + {labels}/' for images, labels in layout.folders)}"
        for layout in LAYOUTS
    )
    return (
        f"data set {str(path)!r} has no known layout. Expected: {expected}. Found: {_entries(path)}."
        " Give the folder above these, or name the two folders: DIR --labels DIR"
    )


def _entries(folder: Place) -> str:
    names = sorted(f"{e.name}/" if e.is_dir() else e.name for e in folder.iterdir())
    if not names:
        return "nothing, the folder is empty"
    first = ", ".join(names[:8])
    return first if len(names) <= 8 else f"{first} and {len(names) - 8} more"
