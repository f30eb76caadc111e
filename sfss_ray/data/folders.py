"""Image files: the records of images and labels, listing of folders, and fixed splits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TypeVar

import numpy as np

from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.data.decoding import MAX_PIXELS, read_image
from sfss_ray.data.depth import White
from sfss_ray.data.file_names import printable
from sfss_ray.data.label_formats import Decoding, make_decoding, read_raw
from sfss_ray.data.label_names import is_label_name
from sfss_ray.data.suffixes import SkippedFiles, image_suffixes, is_basic, is_still_image
from sfss_ray.errors import DataError
from sfss_ray.runtime.progress import ProgressSink
from sfss_ray.storage.places import ObjectPath, Place, reaching, to_place

_Item = TypeVar("_Item")


@dataclass(frozen=True, order=True)
class ImageFile:
    """An image file and its id: the path relative to its folder, without suffix, as `printable`."""

    image_id: str
    path: Place
    white: White | None = field(default=None, compare=False)
    """White level for images of more than 8 bits; the same for the whole folder."""

    def read(self, max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
        """Read the image as uint8 (H, W, 3) RGB; see `read_image`."""
        return read_image(self.path, max_pixels, self.white)


@dataclass(frozen=True, order=True)
class LabelledImage:
    """An image file with its label map."""

    image_id: str
    path: Place
    label_path: Place
    decoding: Decoding | None = field(default=None, compare=False)
    """How the label map is read; None stands for `read_labels`."""
    white: White | None = field(default=None, compare=False)
    """White level for images of more than 8 bits; the same for the whole folder."""

    def read(self, max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
        """Read the image as uint8 (H, W, 3) RGB; see `read_image`."""
        return read_image(self.path, max_pixels, self.white)

    def labels(self) -> np.ndarray:
        """Read the labels as uint8 (H, W) class indices, 255 ignored.

        Raises:
            DataError: the label map cannot be read; names the file and the reason.
        """
        if self.decoding is None:
            return read_labels(self.label_path)
        return self.decoding.read(self.label_path)


def require_folder(folder: Place | str, role: str) -> Place:
    """Return a folder as a place that workers find too, which run in another working directory.

    Raises:
        DataError: the path does not exist or is not a folder, or the address cannot be reached.
    """
    path = to_place(folder)
    if isinstance(path, ObjectPath):
        return _require_prefix(path, role)
    if not path.exists():
        raise DataError(
            f"{role}: {str(folder)!r} does not exist; give the path of an existing folder"
        )
    if not path.is_dir():
        raise DataError(f"{role}: {str(folder)!r} is a file; give the folder that holds the images")
    return path


def _require_prefix(folder: ObjectPath, role: str) -> ObjectPath:
    """Return a folder in object storage, after a check that it holds objects."""
    with reaching(folder, role):
        if folder.is_dir():
            return folder
        if folder.is_file():
            raise DataError(
                f"{role}: {str(folder)!r} is an object; give the address above it that holds the images"
            )
        folder.require_bucket()
    raise DataError(
        f"{role}: no object lies below {str(folder)!r}; give the address of an existing folder"
    )


def walk_images(folder: Place, skipped: SkippedFiles) -> Iterator[tuple[str, Place]]:
    """Yield (id, place) of each image file below a folder; all other files are counted in `skipped`.

    Links to folders are followed unless they lead back to one of their own parents.
    """
    if isinstance(folder, ObjectPath):
        yield from _walk_objects(folder, skipped)
        return
    prefix_length, suffixes = len(os.path.join(folder, "")), image_suffixes()
    for parent, subfolders, names in os.walk(folder, onerror=_raise_unlistable, followlinks=True):
        subfolders[:] = sorted(
            name
            for name in subfolders
            if not name.startswith(".") and not _is_link_to_parent(folder, parent, name)
        )
        # Ids are joined as text: a Path object per part takes four seconds for 100,000 files.
        id_prefix = printable(os.path.join(parent, "")[prefix_length:]).replace(os.sep, "/")
        for name in names:
            if name.startswith("."):
                continue
            if not name.lower().endswith(suffixes):
                skipped.add(name)
            elif is_still_image(os.path.join(parent, name)):
                image_id = id_prefix + printable(name.rpartition(".")[0])
                yield image_id, Path(os.path.join(parent, name))
            else:
                skipped.add_animated()


def _walk_objects(folder: ObjectPath, skipped: SkippedFiles) -> Iterator[tuple[str, Place]]:
    """Yield (id, place) of each image below an address, from one listing of it."""
    prefix_length, suffixes = len(f"{folder.key}/") if folder.key else 0, image_suffixes()
    with reaching(folder):
        objects = list(folder.files())
    for location, _ in objects:
        relative = location.key[prefix_length:]
        if relative.startswith(".") or "/." in relative:
            continue
        if not relative.lower().endswith(suffixes):
            skipped.add(location.name)
        elif is_still_image(location):
            yield printable(relative.rpartition(".")[0]), location
        else:
            skipped.add_animated()


def _is_link_to_parent(top: Path, parent: str, name: str) -> bool:
    """Return whether a subfolder is a link to a folder between `top` and itself: a loop."""
    path = Path(parent, name)
    if not path.is_symlink():
        return False
    ancestors = [folder for folder in path.parents if folder == top or top in folder.parents]
    return path.resolve() in {folder.resolve() for folder in ancestors}


def _raise_unlistable(error: OSError) -> None:
    """Raise a DataError, because `os.walk` would silently skip a folder it cannot list."""
    raise DataError(
        f"folder {error.filename!r} cannot be listed ({error.strerror or error}): grant this user"
        " read permission, or remove the folder"
    ) from error


def index_by_id(
    files: Iterable[tuple[str, Place]], role: str, skipped: SkippedFiles
) -> dict[str, Place]:
    """Return paths by id. Of a.png and a.gif the one with the common suffix is kept.

    Raises:
        DataError: two files share an id and both have common suffixes.
    """
    paths: dict[str, Place] = {}
    for image_id, path in files:
        previous = paths.get(image_id)
        if previous is None:
            paths[image_id] = path
            continue
        if is_basic(path) == is_basic(previous):
            raise DataError(
                f"{role}: {previous.name!r} and {path.name!r} in {str(path.parent)!r} differ"
                " only by their suffix; keep one of them"
            )
        if is_basic(path):
            paths[image_id] = path
        skipped.add(previous.name if is_basic(path) else path.name)
    return paths


def list_images(
    folder: Place | str, role: str = "target images", notes: ProgressSink | None = None
) -> list[ImageFile]:
    """Return all images below a folder, sorted by id.

    Args:
        folder: Its subfolders are searched too.
        role: The role of the folder, named in messages.
        notes: Called with one line on the files skipped because of their suffix, if there are any.

    Raises:
        DataError: the folder is missing or holds no image, it holds Cityscapes label maps, or two
            images share an id (a.jpg and a.png: often a label map among the images).
    """
    root = require_folder(folder, role)
    skipped = SkippedFiles()
    paths = index_by_id(walk_images(root, skipped), role, skipped)
    label_id = next((image_id for image_id in paths if is_label_name(image_id)), None)
    if label_id is not None:
        raise DataError(
            f"{role}: {str(paths[label_id])!r} is a label map and would be used as an image; give the"
            " folder that holds only images (for Cityscapes leftImg8bit, or a part of it)"
        )
    note = skipped.summary()
    if not paths:
        raise DataError(
            f"{role}: no image in {str(root)!r}; expected files with one of the suffixes"
            f" {', '.join(image_suffixes())} in it or its subfolders{f' ({note})' if note else ''}"
        )
    if note and notes:
        notes(f"{role}: {note}")
    return [ImageFile(image_id, paths[image_id]) for image_id in sorted(paths)]


def read_labels(path: Place | str) -> np.ndarray:
    """Read a label map as uint8 (H, W) train ids; 255 is ignored.

    Pixel values are the ids (for palette images the palette index). Files named *_labelIds are
    mapped from Cityscapes labelIds to train ids.
    """
    if not PurePath(str(path)).stem.endswith("_labelIds"):
        return read_raw(path)
    return make_decoding("cityscapes_label_ids", CITYSCAPES_19).read(path)


def split_held_out(
    images: list[ImageFile], share: float, max_held_out: int
) -> tuple[list[ImageFile], list[ImageFile]]:
    """Split images into (training, held-out) by a hash of the id, so that splits are stable.

    Adding one image moves at most one other image between the two lists.

    Args:
        images: The images to split.
        share: Share of held-out images in [0, 1].
        max_held_out: Upper bound of the number of held-out images.

    Returns:
        Both lists sorted by id. At least one image is held out if `share` and `max_held_out` are
        positive and there are two images or more.
    """
    count = min(max_held_out, round(share * len(images)))
    if share > 0 and max_held_out > 0 and len(images) > 1:
        count = max(count, 1)
    by_hash = sorted(images, key=lambda f: hashlib.sha256(f.image_id.encode()).digest())
    return sorted(by_hash[count:]), sorted(by_hash[:count])


def evenly_spread(images: list[_Item], count: int) -> list[_Item]:
    """Return `count` images at even distances, or all images if there are no more."""
    if len(images) <= count:
        return images
    return [images[int((i + 0.5) * len(images) / count)] for i in range(count)]
