"""How the pixels of a label map name classes: train ids, labelIds, GTA5, SYNTHIA, CamVid, IDD.

A `LabelFormat` says which class name a raw id stands for. A `Decoding` is a format together with the
classes wanted: a table from raw id to index, made by class NAME. Which format a folder is in can be
named, or recognised from what is certain: file names, bit depth, palette.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sfss_ray.data.class_sets import (
    CAMVID_11,
    CITYSCAPES_19,
    CITYSCAPES_LABEL_IDS,
    IGNORE_INDEX,
    SYNTHIA_16,
    ClassSet,
    class_set_of,
    matched_names,
)
from sfss_ray.data.label_files import read_colours, read_ids
from sfss_ray.data.label_names import PLAIN, TRAIN_IDS, encoding_of
from sfss_ray.data.label_tables import CAMVID_COLOURS, IDD_IDS, IDD_LEVEL3
from sfss_ray.data.pillow import open_image
from sfss_ray.errors import DataError

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
    minus_one: bool = False
    """An id of -1 belongs to the format and is ignored."""
    colours: tuple[tuple[int, int, int], ...] = ()
    """Of pictures that show classes as colours: the colour of each raw id."""


def _others(names: Mapping[int, str], last: int) -> frozenset[int]:
    return frozenset({*range(last + 1), IGNORE_INDEX} - set(names))


_CAMVID = dict(enumerate(CAMVID_11.classes))
_CAMVID_COLOURS = {i: name for i, (_, name) in enumerate(CAMVID_COLOURS) if name}
_IDD_LEVEL3, _IDD_IDS = dict(enumerate(IDD_LEVEL3)), dict(enumerate(IDD_IDS))
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
            minus_one=True,
        ),
        LabelFormat(
            "gta5",
            "GTA5 palette images of Cityscapes labelIds",
            CITYSCAPES_19,
            _CITYSCAPES,
            _others(_CITYSCAPES, 34),
            minus_one=True,
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
        LabelFormat(
            "camvid_colours",
            "CamVid's colour-coded originals",
            CAMVID_11,
            _CAMVID_COLOURS,
            _others(_CAMVID_COLOURS, len(CAMVID_COLOURS) - 1),
            colours=tuple(colour for colour, _ in CAMVID_COLOURS),
        ),
        LabelFormat(
            "idd_level3",
            "IDD's level3Ids",
            class_set_of(IDD_LEVEL3, "idd-26"),
            _IDD_LEVEL3,
            _others(_IDD_LEVEL3, len(IDD_LEVEL3) - 1),
        ),
        LabelFormat(
            "idd_ids", "IDD's ids", class_set_of(IDD_IDS, "idd-35"), _IDD_IDS, _others(_IDD_IDS, 39)
        ),
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
        return read_raw(path, FORMATS[self.format])

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


def read_raw(path: Path | str, known: LabelFormat | None = None) -> np.ndarray:
    """(H, W) uint8 ids of a label file; palette images give the index, not the colour.

    known: the format, where several channels, colours or an id of -1 belong to it.
    """
    if known is None:
        return read_ids(path)
    if known.colours:
        return _ids_of_colours(path, known)
    return read_ids(path, 0 if known.first_channel else None, known.minus_one)


def _ids_of_colours(path: Path | str, known: LabelFormat) -> np.ndarray:
    packed = read_colours(path).astype(np.int64) @ (1 << 16, 1 << 8, 1)
    codes = np.array(known.colours, np.int64) @ (1 << 16, 1 << 8, 1)
    order = np.argsort(codes)
    at = np.searchsorted(codes[order], packed).clip(max=len(codes) - 1)
    ids = order[at]
    strange = packed[codes[ids] != packed]
    if strange.size:
        code = int(strange[0])
        colour = code >> 16, code >> 8 & 255, code & 255
        raise DataError(
            f"labels {str(path)!r}: colour {colour} found, which {known.name} has not; give"
            f" {known.what} as they were published, or label maps of class ids"
        )
    return ids.astype(np.uint8)


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
    stated = _stated_by_names(files)
    if stated:
        return stated
    step = max(1, len(files) // _SAMPLED)
    sample = list(files[::step])[:_SAMPLED]
    if sample and all(_png_kind(f) in ((16, 2), (16, 6)) for f in sample):
        return Recognised("synthia", "16-bit PNGs of several channels")
    if sample and all(_has_label_id_palette(f) for f in sample):
        return Recognised("gta5", "palette images coloured by Cityscapes labelId")
    if all(_CAMVID_DRIVE.match(f.name) for f in files):
        if sample and all(_is_colour_picture(f) for f in sample):
            return Recognised("camvid_colours", "colour pictures named after CamVid's drives")
        if _at_most(sample, CAMVID_11):
            return Recognised("camvid", "files are named after CamVid's drives")
    return Recognised(TRAIN_IDS, "nothing else was recognised")


def as_named(format_name: str, files: Sequence[Path]) -> Recognised:
    """A format that the user named; names such as *_labelTrainIds still state the classes."""
    stated = _stated_by_names(files)
    classes = stated.classes if stated and stated.format == format_name else None
    return Recognised(format_name, "as named", classes)


def _stated_by_names(files: Sequence[Path]) -> Recognised | None:
    """The format that the names of the files or of their folders state."""
    by_encoding = {encoding_of(f.stem): f for f in files}
    if len({encoding.format for encoding in by_encoding}) > 1:
        raise DataError(
            "labels of several encodings: "
            + ", ".join(str(f) for f in list(by_encoding.values())[:2])
            + "; give those of one, or name labels_format"
        )
    encoding = next(iter(by_encoding), PLAIN)
    if encoding.format:
        classes = CITYSCAPES_19 if encoding.format == TRAIN_IDS else None
        return Recognised(encoding.format, f"files are named *_{encoding.name}", classes)
    if files and all(f.parts[-4:-1][:2] == _BDD100K or f.parts[-3:-1] == _BDD100K for f in files):
        return Recognised(TRAIN_IDS, "they lie in BDD100K's sem_seg/masks", CITYSCAPES_19)
    return None


_BDD100K = ("sem_seg", "masks")


def _is_colour_picture(path: Path) -> bool:
    try:
        with open_image(path) as image:
            return image.mode in ("RGB", "RGBA")
    except Exception:  # damaged files are named when they are read
        return False


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
