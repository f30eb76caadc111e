"""Folders of images and labels: listing, reading, pairing, and a split that stays the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sfss_ray.data.class_sets import CITYSCAPES_19, IGNORE_INDEX, ClassSet
from sfss_ray.data.decoding import MAX_PIXELS, read_image
from sfss_ray.data.depth import White
from sfss_ray.data.label_formats import Decoding, make_decoding, read_raw
from sfss_ray.data.label_names import (
    absent_splits,
    in_split,
    is_label_name,
    is_other_picture,
    pair_names,
)
from sfss_ray.data.names import printable
from sfss_ray.data.suffixes import LeftOut, image_suffixes, is_basic, is_still_image
from sfss_ray.errors import DataError
from sfss_ray.runtime.progress import ProgressSink


@dataclass(frozen=True, order=True)
class ImageFile:
    """An image: its id (path relative to its folder, without suffix, as `printable`) and its place."""

    image_id: str
    path: Path
    white: White | None = field(default=None, compare=False)
    """Of images of more than 8 bits; the same for all of a folder."""

    def read(self, max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
        """uint8 (H, W, 3) RGB; see `read_image`."""
        return read_image(self.path, max_pixels, self.white)


@dataclass(frozen=True, order=True)
class LabelledImage:
    """An image and the label map that belongs to it."""

    image_id: str
    path: Path
    label_path: Path
    decoding: Decoding | None = field(default=None, compare=False)
    """How the label map is read; None: by `read_labels`."""
    white: White | None = field(default=None, compare=False)
    """Of images of more than 8 bits; the same for all of a folder."""

    def read(self, max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
        """The image, uint8 (H, W, 3) RGB; see `read_image`."""
        return read_image(self.path, max_pixels, self.white)

    def labels(self) -> np.ndarray:
        """(H, W) uint8 class indices, 255 ignored; DataError names the file and the reason."""
        if self.decoding is None:
            return read_labels(self.label_path)
        return self.decoding.read(self.label_path)


def require_folder(folder: Path | str, what: str) -> Path:
    """The folder as a Path; DataError when it is missing or no folder."""
    path = Path(folder).absolute()  # workers do not run in the folder of the caller
    if not path.exists():
        raise DataError(
            f"{what}: {str(folder)!r} does not exist; give the path of an existing folder"
        )
    if not path.is_dir():
        raise DataError(f"{what}: {str(folder)!r} is a file; give the folder that holds the images")
    return path


def _walk(folder: Path, left_out: LeftOut) -> Iterator[tuple[str, Path]]:
    """Image files below a folder with their ids; other files are counted.

    Links to folders are followed, but not to one that they lie in: that is a loop. Names are put
    together as text: with a path object for each step 100,000 names take four seconds.
    """
    top, suffixes = len(os.path.join(folder, "")), image_suffixes()
    for root, folders, names in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        folders[:] = sorted(
            f for f in folders if not f.startswith(".") and not _leads_back(folder, root, f)
        )
        below = printable(os.path.join(root, "")[top:]).replace(os.sep, "/")
        for name in names:
            if name.startswith("."):
                continue
            if not name.lower().endswith(suffixes):
                left_out.add(name)
            elif is_still_image(os.path.join(root, name)):
                yield below + printable(name.rpartition(".")[0]), Path(os.path.join(root, name))
            else:
                left_out.add_animated()


def _leads_back(top: Path, root: str, name: str) -> bool:
    """Whether a folder below `top` is a link to one of the folders on the way to it."""
    path = Path(root, name)
    if not path.is_symlink():
        return False
    way = [parent for parent in path.parents if parent == top or top in parent.parents]
    return path.resolve() in {parent.resolve() for parent in way}


def _refuse_folder(error: OSError) -> None:
    """Images of a folder that cannot be listed would be left out without a word."""
    raise DataError(
        f"folder {error.filename!r} cannot be listed ({error.strerror or error}): give it to this user"
        " to read, or take it away"
    ) from error


def _by_id(files: Iterable[tuple[str, Path]], what: str, left_out: LeftOut) -> dict[str, Path]:
    """Files by id; beside a file of a common suffix, one of another (a.png and a.gif) is left out."""
    found: dict[str, Path] = {}
    for image_id, path in files:
        other = found.get(image_id)
        if other is not None and is_basic(path) == is_basic(other):
            raise DataError(
                f"{what}: {other.name!r} and {path.name!r} in {str(path.parent)!r} differ"
                " only by their suffix; keep one of them there"
            )
        if other is None or is_basic(path):
            found[image_id] = path
        if other is not None:
            left_out.add(other.name if is_basic(path) else path.name)
    return found


def list_images(
    folder: Path | str, what: str = "target images", notes: ProgressSink | None = None
) -> list[ImageFile]:
    """All images below `folder`, sorted by id.

    notes: called with a line on the files that were left out by their suffix, where there are any.

    Raises DataError when the folder is missing, holds no image, holds Cityscapes' label maps, or two
    images of one id (a.jpg and a.png: usually a label that lies among the images).
    """
    root = require_folder(folder, what)
    left_out = LeftOut()
    found = _by_id(_walk(root, left_out), what, left_out)
    label = next((i for i in found if is_label_name(i)), None)
    if label is not None:
        raise DataError(
            f"{what}: {str(found[label])!r} is a label map and would count as an image; give the folder"
            " of the images alone (of Cityscapes leftImg8bit, or a part of it)"
        )
    line = left_out.line()
    if not found:
        raise DataError(
            f"{what}: no image in {str(root)!r}; looked for {', '.join(image_suffixes())} there and"
            f" in its folders{f' ({line})' if line else ''}"
        )
    if line and notes:
        notes(f"{what}: {line}")
    return [ImageFile(image_id, found[image_id]) for image_id in sorted(found)]


def read_labels(path: Path | str) -> np.ndarray:
    """Read a label map as uint8 (H, W) train ids; 255 is ignored.

    The pixel value is the id (palette images: the palette index). Files named *_labelIds are
    translated from Cityscapes' labelIds.
    """
    if not Path(path).stem.endswith("_labelIds"):
        return read_raw(path)
    return make_decoding("cityscapes_label_ids", CITYSCAPES_19).read(path)


@dataclass(frozen=True)
class Matching:
    """Images and labels brought together, and those that are left over."""

    pairs: list[LabelledImage]
    images_alone: list[str]
    labels_alone: list[str]
    image_splits: dict[str, int] = field(default_factory=dict)
    """Splits of the images that the labels do not have (test), with their number of images."""
    label_splits: dict[str, int] = field(default_factory=dict)
    """Splits of the labels that the images do not have, with their number of labels."""
    notes: list[str] = field(default_factory=list)
    """What was chosen among several encodings, and what was left out by suffix, a line each."""

    def lines(self) -> list[str]:
        """The notes and what was left out, for people."""
        absent = [
            f"{number} {kind} of {split}/ are left out: the {others} have no such folder"
            for kind, others, splits in (
                ("images", "labels", self.image_splits),
                ("labels", "images", self.label_splits),
            )
            for split, number in splits.items()
        ]
        return self.notes + absent


def match_labels(
    images: Path | str, labels: Path | str, what: str = "val", format_name: str = "auto"
) -> Matching:
    """Every image with its label map, matched by id or by the naming of the known data sets.

    format_name: of labels in several encodings, those of this format are taken.
    """
    notes: list[str] = []
    listed = list_images(images, f"{what} images", notes.append)
    image_files = {file.image_id: file.path for file in listed}
    label_files = _label_files(labels, what, image_files, notes)
    found = pair_names(image_files, label_files, format_name)
    pairs = [
        LabelledImage(image, image_files[image], label_files[label])
        for image, label in found.label_of.items()
    ]
    lonely = [image for image in image_files if image not in found.label_of]
    image_splits: dict[str, int] = {}
    label_splits: dict[str, int] = {}
    if pairs:
        image_splits = absent_splits(lonely, Path(labels))
        label_splits = absent_splits(found.spare, Path(images))
    return Matching(
        pairs,
        [i for i in lonely if not in_split(i, image_splits)],
        [i for i in found.spare if not in_split(i, label_splits)],
        image_splits,
        label_splits,
        found.notes + notes,
    )


def pair_labels(
    images: Path | str, labels: Path | str, what: str = "val", format_name: str = "auto"
) -> list[LabelledImage]:
    """Every image with its label map, as `match_labels` does, and none left over.

    Raises DataError naming the first images without labels or labels without images.
    """
    matching = match_labels(images, labels, what, format_name)
    refuse_unpaired(matching, images, labels, what)
    return matching.pairs


def refuse_unpaired(
    matching: Matching, images: Path | str, labels: Path | str, what: str = "val"
) -> None:
    """DataError naming the first images without labels or labels without images."""
    lonely, spare = matching.images_alone, matching.labels_alone
    if lonely:
        notes = "".join(f" ({note})" for note in matching.notes)
        raise DataError(
            f"{what} images without labels: {_some(lonely)}; {str(labels)!r} needs a file of the same"
            f" name for each image (or remove the images){notes}"
        )
    if spare:
        raise DataError(
            f"{what} labels without images: {_some(spare)}; {str(images)!r} needs a file of the same"
            " name for each label (or remove the labels)"
        )


def _label_files(
    labels: Path | str, what: str, images: Collection[str], notes: list[str]
) -> dict[str, Path]:
    """Label maps by id; a note is added on files left out by their suffix."""
    root, left_out = require_folder(labels, f"{what} labels"), LeftOut()
    files = [f for f in _walk(root, left_out) if f[0] in images or not is_other_picture(f[0])]
    found = _by_id(files, f"{what} labels", left_out)
    line = left_out.line()
    if not found:
        raise DataError(
            f"{what} labels: no label map in {str(root)!r}; give a folder of PNG files"
            f"{f' ({line})' if line else ''}"
        )
    notes += [f"{what} labels: {line}"] if line else []
    return found


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def check_label_ids(pairs: Iterable[LabelledImage], classes: ClassSet) -> None:
    """DataError when a label map holds an id that the class set has not."""
    for item in pairs:
        ids = np.unique(item.labels())
        strange = [int(i) for i in ids if i != IGNORE_INDEX and i >= len(classes)]
        if strange:
            raise DataError(
                f"labels {str(item.label_path)!r} hold id {strange[0]}, but the model has"
                f" {len(classes)} classes ({classes.name}: 0 to {len(classes) - 1}, 255 ignored); give"
                " labels of the model's classes, or a model of the labels' classes"
            )


def split_held_out(
    images: list[ImageFile], share: float, most: int
) -> tuple[list[ImageFile], list[ImageFile]]:
    """Split images into (training, held-out), by a hash of the id: one more image moves at most one.

    At least one image is held out when share > 0 and there are two or more.
    """
    count = min(most, round(share * len(images)))
    if share > 0 and most > 0 and len(images) > 1:
        count = max(count, 1)
    by_hash = sorted(images, key=lambda f: hashlib.sha256(f.image_id.encode()).digest())
    return sorted(by_hash[count:]), sorted(by_hash[:count])


def evenly_spread(images: list[ImageFile], number: int) -> list[ImageFile]:
    """`number` images at even distances; all of them when there are no more."""
    if len(images) <= number:
        return images
    return [images[int((i + 0.5) * len(images) / number)] for i in range(number)]
