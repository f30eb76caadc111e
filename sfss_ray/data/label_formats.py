"""How the pixels of a label map name classes: train ids, labelIds, GTA5, SYNTHIA, CamVid.

A `LabelFormat` says which class name a raw id stands for. A `Decoding` is a format together with the
classes wanted: a table from raw id to index, made by class NAME. Which format a folder is in can be
named, or recognised from what is certain: file names, bit depth, palette.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from sfss_ray.data.class_sets import (
    CAMVID_11,
    CITYSCAPES_19,
    CITYSCAPES_LABEL_IDS,
    IGNORE_INDEX,
    SYNTHIA_16,
    ClassSet,
    matched_names,
)
from sfss_ray.data.pillow import open_image
from sfss_ray.errors import DataError

TRAIN_IDS = "train_ids"
_CITYSCAPES: dict[int, str] = {v: k for k, v in CITYSCAPES_LABEL_IDS.items()}
_SYNTHIA = {
    1: "sky",
    2: "building",
    3: "road",
    4: "sidewalk",
    5: "fence",
    6: "vegetation",
    7: "pole",
    8: "car",
    9: "traffic sign",
    10: "person",
    11: "bicycle",
    12: "motorcycle",
    15: "traffic light",
    17: "rider",
    19: "bus",
    21: "wall",
}


@dataclass(frozen=True)
class LabelFormat:
    """What raw ids mean. `classes` None: raw ids are indices into a class set given elsewhere."""

    name: str
    what: str
    classes: ClassSet | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    """Raw id -> class name."""
    void: frozenset[int] = frozenset({IGNORE_INDEX})
    """Raw ids that belong to the format and are ignored."""
    first_channel: bool = False
    """Class ids stand in the first channel of a picture of several."""


def _others(names: Mapping[int, str], last: int) -> frozenset[int]:
    return frozenset({*range(last + 1), IGNORE_INDEX} - set(names))


_CAMVID = dict(enumerate(CAMVID_11.classes))
FORMATS: dict[str, LabelFormat] = {
    known.name: known
    for known in (
        LabelFormat(TRAIN_IDS, "train ids, 255 ignored"),
        LabelFormat(
            "cityscapes_label_ids",
            "Cityscapes labelIds",
            CITYSCAPES_19,
            _CITYSCAPES,
            _others(_CITYSCAPES, 33),
        ),
        LabelFormat(
            "gta5",
            "GTA5 palette images of Cityscapes labelIds",
            CITYSCAPES_19,
            _CITYSCAPES,
            _others(_CITYSCAPES, 34),
        ),
        LabelFormat(
            "synthia",
            "SYNTHIA-RAND-CITYSCAPES 16-bit ids in the first channel",
            SYNTHIA_16,
            _SYNTHIA,
            _others(_SYNTHIA, 22),
            first_channel=True,
        ),
        LabelFormat("camvid", "CamVid, void 11", CAMVID_11, _CAMVID, _others(_CAMVID, 11)),
    )
}


@dataclass(frozen=True)
class Decoding:
    """A format and the classes wanted: raw id -> index of the same class, by name, else 255."""

    format: str
    label_classes: ClassSet
    """What the labels can show."""
    table: bytes
    """256 entries: index in the wanted classes, or 255."""
    known: bytes
    """256 entries: 1 for raw ids that belong to the format."""

    def read(self, path: Path | str) -> np.ndarray:
        """Labels (H, W) uint8 in the wanted classes; DataError names the file and the reason."""
        return np.frombuffer(self.table, np.uint8)[self.read_raw(path)]

    def read_raw(self, path: Path | str) -> np.ndarray:
        """(H, W) uint8 ids as they stand in the file."""
        return read_raw(path, FORMATS[self.format].first_channel)

    def strange(self, ids: Sequence[int]) -> list[int]:
        """Those raw ids that the format does not know."""
        return [int(i) for i in ids if not self.known[i]]


def make_decoding(format_name: str, wanted: ClassSet, listed: ClassSet | None = None) -> Decoding:
    """The decoding of a format into `wanted` classes.

    listed: the classes of train ids, where they are not the wanted ones themselves.
    """
    if format_name not in FORMATS:
        raise DataError(f"labels_format is {format_name!r}: allowed are auto, {', '.join(FORMATS)}")
    known = FORMATS[format_name]
    label_classes = known.classes or listed or wanted
    names = known.names if known.classes else dict(enumerate(label_classes.classes))
    matched = matched_names(label_classes, wanted)
    index = {name: wanted.classes.index(other) for name, other in matched.items()}
    table = bytes(index.get(names.get(i, ""), IGNORE_INDEX) for i in range(256))
    mask = bytes(int(i in names or i in known.void) for i in range(256))
    return Decoding(format_name, label_classes, table, mask)


def read_raw(path: Path | str, first_channel: bool = False) -> np.ndarray:
    """(H, W) uint8 ids of a label file; palette images give the index, not the colour.

    first_channel: take the first of several channels (SYNTHIA); otherwise several are refused.
    """
    values = _read_first_channel(path) if first_channel else _read_one_channel(path)
    if values.size and (values.max() > 255 or values.min() < 0):
        raise DataError(f"labels {str(path)!r}: id {values.max()} found; allowed are 0 to 255")
    return values.astype(np.uint8)


def _read_one_channel(path: Path | str) -> np.ndarray:
    try:
        with open_image(path) as image:
            values = np.array(image)
    except Exception as error:  # Pillow's decoders raise errors of many kinds on damaged files
        raise DataError(
            f"labels {str(path)!r}: cannot be read ({type(error).__name__}); give PNG label maps"
        ) from error
    if values.ndim != 2:
        raise DataError(
            f"labels {str(path)!r}: {values.shape[2]} channels; give one channel of class ids,"
            " not a colour picture"
        )
    return values


def _read_first_channel(path: Path | str) -> np.ndarray:
    try:
        data = np.frombuffer(Path(path).read_bytes(), np.uint8)
        # Pillow would bring 16-bit colour pictures to 8 bits, which loses the ids.
        values = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except (OSError, cv2.error) as error:
        raise DataError(f"labels {str(path)!r}: cannot be read ({error})") from error
    if values is None:
        raise DataError(f"labels {str(path)!r}: cannot be read; give PNG label maps")
    # OpenCV orders channels blue, green, red(, alpha): the file's first one is the third.
    return values if values.ndim == 2 else values[..., 2]


@dataclass(frozen=True)
class Recognised:
    """A format, how it was told, and the classes of train ids where the files themselves say them."""

    format: str
    reason: str
    classes: ClassSet | None = None


_CAMVID_DRIVE = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_")
_SAMPLED = 5


def recognise(files: Sequence[Path]) -> Recognised:
    """The format of label files, from what cannot be mistaken; train ids where nothing speaks.

    Looks at all names and at a few files, spread over the list. CamVid's ids look like train ids,
    so they are told by the names of its drives.
    """
    if all(f.stem.endswith("_labelTrainIds") for f in files):
        return Recognised(TRAIN_IDS, "files are named *_labelTrainIds", CITYSCAPES_19)
    if all(f.stem.endswith("_labelIds") for f in files):
        return Recognised("cityscapes_label_ids", "files are named *_labelIds")
    step = max(1, len(files) // _SAMPLED)
    sample = list(files[::step])[:_SAMPLED]
    if sample and all(_png_kind(f) in ((16, 2), (16, 6)) for f in sample):
        return Recognised("synthia", "16-bit PNGs of several channels")
    if sample and all(_has_label_id_palette(f) for f in sample):
        return Recognised("gta5", "palette images coloured by Cityscapes labelId")
    if all(_CAMVID_DRIVE.match(f.name) for f in files) and _at_most(sample, CAMVID_11):
        return Recognised("camvid", "files are named after CamVid's drives")
    return Recognised(TRAIN_IDS, "nothing else was recognised")


def _png_kind(path: Path) -> tuple[int, int] | None:
    """(bits per channel, colour type) of a PNG, from its header."""
    try:
        with open(path, "rb") as file:
            head = file.read(26)
    except OSError:
        return None
    return (head[24], head[25]) if len(head) == 26 and head[1:4] == b"PNG" else None


def _has_label_id_palette(path: Path) -> bool:
    """Whether road, building, vegetation and car have Cityscapes' colours at their labelIds."""
    try:
        with open_image(path) as image:
            palette = image.getpalette() if image.mode == "P" else None
    except Exception:  # damaged files are told of when they are read
        return False
    if not palette or len(palette) < 3 * 27:
        return False
    colours = dict(zip(CITYSCAPES_19.classes, CITYSCAPES_19.palette, strict=True))
    return all(
        tuple(palette[3 * i : 3 * i + 3]) == colours[_CITYSCAPES[i]] for i in (7, 11, 21, 26)
    )


def _at_most(sample: Sequence[Path], classes: ClassSet) -> bool:
    try:
        ids = {int(i) for f in sample for i in np.unique(read_raw(f))}
    except DataError:
        return True
    return all(i <= len(classes) or i == IGNORE_INDEX for i in ids)
