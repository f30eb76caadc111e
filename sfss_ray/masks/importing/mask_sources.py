"""Where the masks to import lie: a file or folder, matched with the images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sfss_ray.errors import DataError
from sfss_ray.masks.importing.amg_files import METADATA, read_amg_folder
from sfss_ray.masks.importing.array_files import read_array_masks
from sfss_ray.masks.importing.coco_files import parse_coco
from sfss_ray.masks.importing.formats import (
    ARRAYS,
    ID_MAPS,
    LABELS,
    SUFFIXES,
    TEXT,
    MaskFormat,
    Recognised,
    SourceFiles,
    recognise,
)
from sfss_ray.masks.importing.id_maps import read_id_map
from sfss_ray.masks.importing.json_files import read_json_masks, read_text_masks
from sfss_ray.masks.importing.name_matching import NameMatching, match_names
from sfss_ray.masks.importing.records import reason_of

_MAP_NAME = re.compile(
    r"(?P<stem>.+?)_(?:gtFine_|gtCoarse_|gt_)?(?P<ending>instance\w*|panoptic\w*|label\w*[iI]ds|color)"
)
_ENDINGS = ("instance", "panoptic", "", "label", "color")
"""Kinds of id maps by the beginning of their ending, the preferred first."""
_IMAGE_NAME = re.compile(r"(?P<stem>.+)_(?:leftImg8bit|rgb_anon|rgb)")


class ImageMasks(Protocol):
    """The masks of one image, not yet read."""

    def read(self, size: tuple[int, int]) -> list[dict[str, Any]]:
        """Return the mask records for an image of this size (height, width)."""
        ...

    def stamp(self) -> str:
        """Return a hash that changes with the masks."""
        ...


@dataclass(frozen=True)
class MaskFile:
    """The file, or the folder of amg.py, with the masks of one image."""

    path: Path
    format: str

    def read(self, size: tuple[int, int]) -> list[dict[str, Any]]:
        """Return the mask records for an image of this size (height, width).

        Raises:
            DataError: the file is damaged, of another format, or of another size.
        """
        if self.path.is_dir():
            return read_amg_folder(self.path, size)
        suffix = self.path.suffix.lower()
        if suffix == TEXT:
            return read_text_masks(self.path, size)
        if suffix in ID_MAPS:
            return read_id_map(self.path, size)
        if suffix in ARRAYS:
            return read_array_masks(self.path, size)
        return read_json_masks(self.path, size, self.format)

    def stamp(self) -> str:
        """Return a hash of the names, sizes and times of the files.

        Raises:
            DataError: a file is gone, or cannot be read.
        """
        try:
            statuses = [(file.name, file.stat()) for file in sorted(self._files())]
        except OSError as error:
            reason = reason_of(error)
            raise DataError(f"masks {str(self.path)!r} cannot be read ({reason})") from error
        lines = [f"{name}\0{status.st_size}\0{status.st_mtime_ns}" for name, status in statuses]
        return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()

    def modified_ns(self) -> int:
        """Return the time of the last change of a file."""
        return max(file.stat().st_mtime_ns for file in (self.path, *self._files()))

    def _files(self) -> list[Path]:
        return [*self.path.iterdir()] if self.path.is_dir() else [self.path]


@dataclass(frozen=True)
class MaskCollection:
    """A mask source, matched with the images."""

    format: str
    masks: Mapping[str, ImageMasks]
    """By image id."""
    reasons: Mapping[str, str]
    """Image id -> why it has no masks."""
    spare: Sequence[str]
    """Names of entries that match no image."""
    num_masks: int | None = None
    """Masks of the matched images, where they are known before they are read."""
    strays: int = 0
    """Annotations of images that the file does not list."""

    def lines(self) -> list[str]:
        """Return the format and the counts for people."""
        total, label = len(self.masks) + len(self.reasons), LABELS[self.format]
        masks = "" if self.num_masks is None else f", {self.num_masks} masks"
        lines = [f"format {self.format} ({label}): {len(self.masks)} of {total} images{masks}"]
        cases = (
            ("images without masks", sorted(self.reasons)),
            ("entries without an image", self.spare),
        )
        lines += [f"{text}: {len(names)}, first {names[0]!r}" for text, names in cases if names]
        if self.strays:
            lines.append(f"annotations of images that it does not list: {self.strays}")
        return [f"masks to import, {line}" for line in lines]


def open_collection(
    root: Path, image_ids: Collection[str], format_name: MaskFormat = "auto"
) -> MaskCollection:
    """Recognise the format of a mask source, and match its entries with images.

    Args:
        root: a COCO file, or a folder with a file or folder for each image, or one of these files.
        image_ids: of the images.
        format_name: the format, or "auto".

    Raises:
        DataError: the format is unknown, the files are pickles, a COCO file is damaged, or no image has
            masks.
    """
    files = SourceFiles.list(root)
    recognised = recognise(files, image_ids, format_name)
    if recognised is None:
        raise DataError(_nothing_message(root, image_ids))
    if recognised.format == "coco":
        collection = _open_coco(recognised, image_ids)
    else:
        collection = _open_files(files, recognised.format, image_ids)
    if not collection.masks:
        raise DataError(_no_match_message(root, collection))
    return collection


def _open_coco(recognised: Recognised, image_ids: Collection[str]) -> MaskCollection:
    path = recognised.path
    assert path is not None
    coco = parse_coco(path, recognised.content, image_ids)
    matching = match_names(coco.images, image_ids)
    reasons = _reasons(image_ids, matching, lambda name: f"it is not listed in {str(path)!r}")
    for image_id, name in matching.entry_of.items():
        if name in coco.duplicates:
            reasons[image_id] = coco.duplicates[name]
    masks = {i: coco.images[n] for i, n in matching.entry_of.items() if i not in reasons}
    return MaskCollection(
        "coco",
        masks,
        reasons,
        [coco.images[name].file_name for name in matching.spare],
        sum(len(image.annotations) for image in masks.values()),
        coco.strays,
    )


def _open_files(files: SourceFiles, format_name: str, image_ids: Collection[str]) -> MaskCollection:
    entries, image_name = files.entries(format_name), lambda image_id: image_id
    if format_name == "id_map":
        entries, image_name = _preferred_maps(entries), _image_stem
    matching = match_names(entries, image_ids, image_name)
    return MaskCollection(
        format_name,
        {i: MaskFile(entries[name], format_name) for i, name in matching.entry_of.items()},
        _reasons(image_ids, matching, lambda name: _missing(name, files.root, format_name)),
        [str(entries[name].relative_to(files.root.parent)) for name in matching.spare],
    )


def _preferred_maps(entries: Mapping[str, Path]) -> dict[str, Path]:
    """Return the id maps of the preferred kind by the name of their image, without its ending."""
    by_kind: dict[str, dict[str, Path]] = {ending: {} for ending in _ENDINGS}
    for name, path in sorted(entries.items()):
        match = _MAP_NAME.fullmatch(name)
        ending = match["ending"] if match else ""
        kind = next(k for k in _ENDINGS if (ending.startswith(k) if k else not ending))
        # Of a_labelIds and a_labelTrainIds the first is used, as for labels.
        by_kind[kind].setdefault(match["stem"] if match else name, path)
    return next((maps for maps in by_kind.values() if maps), {})


def _image_stem(image_id: str) -> str:
    """Return the part of an image's name that its label maps share."""
    match = _IMAGE_NAME.fullmatch(image_id)
    return match["stem"] if match else image_id


def _reasons(
    image_ids: Collection[str], matching: NameMatching, missing: Callable[[str], str]
) -> dict[str, str]:
    """Return why images have no masks; `missing` says what is missing for the name of an image."""
    return matching.ambiguous | {
        image_id: f"no masks: {missing(image_id.rpartition('/')[2])}"
        for image_id in image_ids
        if image_id not in matching.entry_of and image_id not in matching.ambiguous
    }


def _missing(name: str, root: Path, format_name: str) -> str:
    if format_name == "amg":
        return f"neither {name}/{METADATA} nor {name}.json in {str(root)!r}"
    if format_name == "id_map":
        return f"no map of {_image_stem(name)!r} in {str(root)!r}"
    return f"no {' or '.join(name + suffix for suffix in SUFFIXES[format_name])} in {str(root)!r}"


def _nothing_message(root: Path, image_ids: Collection[str]) -> str:
    name = min(image_ids)
    names = sorted(path.name for path in root.iterdir()) if root.is_dir() else [root.name]
    return (
        f"masks to import: none of the {len(image_ids)} images has masks in {str(root)!r}; expected is"
        f" {name}/{METADATA} with 0.png, 1.png, ..., {name}.json, .npz or .png, or one COCO file; found"
        f" is {', '.join(map(repr, names[:3])) or 'nothing'}"
    )


def _no_match_message(root: Path, collection: MaskCollection) -> str:
    image_id, reason = min(collection.reasons.items())
    first_entry = f"; its first entry is {collection.spare[0]!r}" if collection.spare else ""
    return (
        f"masks to import: none of the {len(collection.reasons)} images has masks in {str(root)!r}"
        f" ({collection.format}){first_entry}; {image_id!r}: {reason}"
    )
