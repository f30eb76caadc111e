"""Detection of the label format of a folder from file names, bit depths and palettes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from sfss_ray.data.class_sets import (
    CAMVID_11,
    CITYSCAPES_19,
    CITYSCAPES_LABEL_IDS,
    IGNORE_INDEX,
    ClassSet,
)
from sfss_ray.data.label_formats import read_raw
from sfss_ray.data.label_names import PLAIN, TRAIN_IDS, encoding_of
from sfss_ray.data.label_tables import MAPILLARY_65
from sfss_ray.data.pillow import open_image
from sfss_ray.errors import DataError
from sfss_ray.storage.object_cache import read_copy
from sfss_ray.storage.places import Place

_SAMPLE_SIZE = 5
_CAMVID_DRIVE = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_")
_BDD100K_FOLDERS = ("sem_seg", "masks")
_SYNTHIA_PNG_TYPES = ((16, 2), (16, 6))
"""(bits per channel, colour type) of 16-bit RGB and RGBA."""
_PALETTE_CLASSES = ("road", "building", "vegetation", "car")
"""Classes whose palette entries prove a label map of GTA5 or Mapillary."""
_GTA5_IDS = {name: CITYSCAPES_LABEL_IDS[name] for name in _PALETTE_CLASSES}
_MAPILLARY_IDS = {name: MAPILLARY_65.index(name.capitalize()) for name in _PALETTE_CLASSES}


@dataclass(frozen=True)
class DetectedFormat:
    """A label format with the reason for the choice."""

    format: str
    reason: str
    classes: ClassSet | None = None
    """The classes that train ids index, if the file names state them."""


def detect_format(files: Sequence[Place]) -> DetectedFormat:
    """Return the format of label files from unmistakable signs, or train ids without any.

    All names and the contents of a few files, spread over the list, are inspected. CamVid's ids look
    like train ids, so CamVid is recognised by the names of its drives.

    Raises:
        DataError: the names state several formats.
    """
    stated = _format_from_names(files)
    if stated:
        return stated
    step = max(1, len(files) // _SAMPLE_SIZE)
    sample = list(files[::step])[:_SAMPLE_SIZE]
    if sample and all(_png_type(file) in _SYNTHIA_PNG_TYPES for file in sample):
        return DetectedFormat("synthia", "16-bit PNGs of several channels")
    if sample and all(_has_palette(file, _GTA5_IDS) for file in sample):
        return DetectedFormat("gta5", "palette images coloured by Cityscapes labelId")
    if sample and all(_has_palette(file, _MAPILLARY_IDS) for file in sample):
        return DetectedFormat("mapillary", "palette images coloured by Mapillary Vistas 1.x id")
    if all(_CAMVID_DRIVE.match(file.name) for file in files):
        if sample and all(_is_colour_image(file) for file in sample):
            return DetectedFormat("camvid_colours", "colour pictures named after CamVid's drives")
        if _ids_fit(sample, CAMVID_11):
            return DetectedFormat("camvid", "files are named after CamVid's drives")
    return DetectedFormat(TRAIN_IDS, "nothing else was recognised")


def named_format(format_name: str, files: Sequence[Place]) -> DetectedFormat:
    """Return a format that the user named, with the classes that file names may still state."""
    stated = _format_from_names(files)
    classes = stated.classes if stated and stated.format == format_name else None
    return DetectedFormat(format_name, "as named", classes)


def _format_from_names(files: Sequence[Place]) -> DetectedFormat | None:
    """Return the format that the names of the files or of their folders state."""
    example_of = {encoding_of(file.stem): file for file in files}
    if len({encoding.format for encoding in example_of}) > 1:
        examples = ", ".join(str(file) for file in list(example_of.values())[:2])
        raise DataError(
            f"labels of several encodings: {examples}; give those of one, or name labels_format"
        )
    encoding = next(iter(example_of), PLAIN)
    if encoding.format:
        classes = CITYSCAPES_19 if encoding.format == TRAIN_IDS else None
        return DetectedFormat(encoding.format, f"files are named *_{encoding.name}", classes)
    if files and all(_is_in_bdd100k(file) for file in files):
        return DetectedFormat(TRAIN_IDS, "files are in BDD100K's sem_seg/masks", CITYSCAPES_19)
    return None


def _is_in_bdd100k(file: Place) -> bool:
    """Return whether a file is in sem_seg/masks or in a split below it."""
    parts = PurePath(str(file)).parts
    return parts[-4:-1][:2] == _BDD100K_FOLDERS or parts[-3:-1] == _BDD100K_FOLDERS


def _is_colour_image(path: Place) -> bool:
    try:
        with read_copy(path, open_image) as image:
            return image.mode in ("RGB", "RGBA")
    except Exception:  # a damaged file is reported when it is read
        return False


def _png_type(path: Place) -> tuple[int, int] | None:
    """Return (bits per channel, colour type) from the header of a PNG file, else None."""
    try:
        with read_copy(path, lambda copy: open(copy, "rb")) as file:
            header = file.read(26)
    except OSError:
        return None
    return (header[24], header[25]) if len(header) == 26 and header[1:4] == b"PNG" else None


def _has_palette(path: Place, ids: Mapping[str, int]) -> bool:
    """Return whether a file's palette has Cityscapes' colours of these classes at these ids."""
    try:
        with read_copy(path, open_image) as image:
            palette = image.getpalette() if image.mode == "P" else None
    except Exception:  # a damaged file is reported when it is read
        return False
    colours = dict(zip(CITYSCAPES_19.classes, CITYSCAPES_19.palette, strict=True))
    if not palette or len(palette) < 3 * (max(ids.values()) + 1):
        return False
    return all(tuple(palette[3 * i : 3 * i + 3]) == colours[name] for name, i in ids.items())


def _ids_fit(sample: Sequence[Place], classes: ClassSet) -> bool:
    """Return whether all ids are classes, void (the id after the last class) or 255."""
    try:
        ids = {int(i) for file in sample for i in np.unique(read_raw(file))}
    except DataError:  # a damaged file is reported when it is read
        return True
    return all(i <= len(classes) or i == IGNORE_INDEX for i in ids)
