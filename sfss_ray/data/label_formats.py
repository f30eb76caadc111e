"""Label formats: which class each pixel value of a label map stands for.

A `LabelFormat` gives the class name of each raw id: train ids, Cityscapes labelIds, GTA5, SYNTHIA,
CamVid, IDD, Mapillary Vistas. A `Decoding` is a format with a target class set: a table from raw ids to
class indices, built by class NAME. `format_detection` finds the format of a folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sfss_ray.data.class_sets import (
    CAMVID_11,
    CITYSCAPES_19,
    CITYSCAPES_LABEL_IDS,
    IGNORE_INDEX,
    SYNTHIA_16,
    ClassSet,
    class_set_of,
    mapping_table,
)
from sfss_ray.data.label_files import read_colours, read_ids
from sfss_ray.data.label_names import TRAIN_IDS
from sfss_ray.data.label_tables import CAMVID_COLOURS, IDD_IDS, IDD_LEVEL3, MAPILLARY_65
from sfss_ray.data.shipped_groups import shipped_grouping
from sfss_ray.errors import DataError
from sfss_ray.storage.places import Place

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
    """The meaning of raw ids in label maps."""

    name: str
    description: str
    classes: ClassSet | None = None
    """Classes of the format; None if raw ids are indices into a class set that the user names."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Raw id -> class name."""
    void: frozenset[int] = frozenset({IGNORE_INDEX})
    """Valid raw ids that are ignored."""
    first_channel: bool = False
    """Whether the ids are in the first channel of a multi-channel image."""
    minus_one: bool = False
    """Whether -1 is a valid id that is ignored."""
    colours: tuple[tuple[int, int, int], ...] = ()
    """For colour-coded label maps: the RGB colour of each raw id."""


def _void_ids(names: Mapping[int, str], last_id: int) -> frozenset[int]:
    """Return the ids up to `last_id` that have no class, and 255."""
    return frozenset({*range(last_id + 1), IGNORE_INDEX} - set(names))


_CAMVID = dict(enumerate(CAMVID_11.classes))
_CAMVID_COLOURS = {i: name for i, (_, name) in enumerate(CAMVID_COLOURS) if name}
_IDD_LEVEL3, _IDD_IDS = dict(enumerate(IDD_LEVEL3)), dict(enumerate(IDD_IDS))
_MAPILLARY_GROUPS = shipped_grouping(CITYSCAPES_19.name, class_set_of(MAPILLARY_65)).groups
# Labels have the classes of the benchmark, because a model of Cityscapes' classes has no group that
# could list lane markings, manholes or curbs.
_MAPILLARY = {
    MAPILLARY_65.index(member): name for name, members in _MAPILLARY_GROUPS for member in members
}
FORMATS: dict[str, LabelFormat] = {
    label_format.name: label_format
    for label_format in (
        LabelFormat(TRAIN_IDS, "train ids, 255 ignored"),
        LabelFormat(
            "cityscapes_label_ids",
            "Cityscapes labelIds",
            CITYSCAPES_19,
            _CITYSCAPES,
            _void_ids(_CITYSCAPES, 33),
            minus_one=True,
        ),
        LabelFormat(
            "gta5",
            "GTA5 palette images of Cityscapes labelIds",
            CITYSCAPES_19,
            _CITYSCAPES,
            _void_ids(_CITYSCAPES, 34),
            minus_one=True,
        ),
        LabelFormat(
            "synthia",
            "SYNTHIA-RAND-CITYSCAPES 16-bit ids in the first channel",
            SYNTHIA_16,
            _SYNTHIA,
            _void_ids(_SYNTHIA, 22),
            first_channel=True,
        ),
        LabelFormat("camvid", "CamVid, void 11", CAMVID_11, _CAMVID, _void_ids(_CAMVID, 11)),
        LabelFormat(
            "camvid_colours",
            "CamVid's colour-coded originals",
            CAMVID_11,
            _CAMVID_COLOURS,
            _void_ids(_CAMVID_COLOURS, len(CAMVID_COLOURS) - 1),
            colours=tuple(colour for colour, _ in CAMVID_COLOURS),
        ),
        LabelFormat(
            "idd_level3",
            "IDD's level3Ids",
            class_set_of(IDD_LEVEL3, "idd-26"),
            _IDD_LEVEL3,
            _void_ids(_IDD_LEVEL3, len(IDD_LEVEL3) - 1),
        ),
        LabelFormat(
            "idd_ids",
            "IDD's ids",
            class_set_of(IDD_IDS, "idd-35"),
            _IDD_IDS,
            _void_ids(_IDD_IDS, 39),
        ),
        LabelFormat(
            "mapillary",
            "Mapillary Vistas 1.x ids as Cityscapes' 19 classes, by the convention of RobustNet",
            CITYSCAPES_19,
            _MAPILLARY,
            _void_ids(_MAPILLARY, len(MAPILLARY_65)),
        ),
    )
}


@dataclass(frozen=True)
class Decoding:
    """A label format with a target class set: raw id -> index of the class of the same name."""

    format: str
    label_classes: ClassSet
    """The classes that the labels distinguish."""
    table: bytes
    """256 entries: index in the target class set, or 255."""
    valid: bytes
    """256 entries: 1 for raw ids that belong to the format."""

    def read(self, path: Place | str) -> np.ndarray:
        """Read a label map as uint8 (H, W) indices into the target class set, 255 ignored.

        Raises:
            DataError: the file cannot be read; names the file and the reason.
        """
        return np.frombuffer(self.table, np.uint8)[self.read_raw(path)]

    def read_raw(self, path: Place | str) -> np.ndarray:
        """Read a label map as uint8 (H, W) ids as stored in the file."""
        return read_raw(path, FORMATS[self.format])

    def unknown_ids(self, ids: Sequence[int]) -> list[int]:
        """Return those of the raw ids that do not belong to the format."""
        return [int(i) for i in ids if not self.valid[i]]


def make_decoding(
    format_name: str, target: ClassSet, train_id_classes: ClassSet | None = None
) -> Decoding:
    """Return the decoding of a format into a target class set.

    Args:
        format_name: A key of `FORMATS`.
        target: The class set of the decoded labels.
        train_id_classes: The classes that train ids index, if they are not the target itself.

    Raises:
        DataError: no format has this name.
    """
    if format_name not in FORMATS:
        raise DataError(f"labels_format is {format_name!r}: allowed are auto, {', '.join(FORMATS)}")
    label_format = FORMATS[format_name]
    label_classes = label_format.classes or train_id_classes or target
    names = label_format.names if label_format.classes else dict(enumerate(label_classes.classes))
    to_target = mapping_table(label_classes, target)
    table = np.full(256, IGNORE_INDEX, np.uint8)
    for raw_id, name in names.items():
        table[raw_id] = to_target[label_classes.classes.index(name)]
    valid = bytes(int(i in names or i in label_format.void) for i in range(256))
    return Decoding(format_name, label_classes, table.tobytes(), valid)


def read_raw(path: Place | str, label_format: LabelFormat | None = None) -> np.ndarray:
    """Read a label map as uint8 (H, W) raw ids; palette images give the index, not the colour.

    Args:
        path: The label map.
        label_format: Needed for formats with several channels, colours, or an id of -1.

    Raises:
        DataError: the file cannot be read; names the file and the reason.
    """
    if label_format is None:
        return read_ids(path)
    if label_format.colours:
        return _ids_from_colours(path, label_format)
    return read_ids(path, 0 if label_format.first_channel else None, label_format.minus_one)


def _ids_from_colours(path: Place | str, label_format: LabelFormat) -> np.ndarray:
    """Return the raw ids of a colour-coded label map."""
    # Each colour becomes one integer, so that all pixels are found in one sorted search.
    pixel_codes = read_colours(path).astype(np.int64) @ (1 << 16, 1 << 8, 1)
    format_codes = np.array(label_format.colours, np.int64) @ (1 << 16, 1 << 8, 1)
    order = np.argsort(format_codes)
    positions = np.searchsorted(format_codes[order], pixel_codes).clip(max=len(format_codes) - 1)
    ids = order[positions]
    unknown_codes = pixel_codes[format_codes[ids] != pixel_codes]
    if unknown_codes.size:
        code = int(unknown_codes[0])
        colour = code >> 16, code >> 8 & 255, code & 255
        raise DataError(
            f"labels {str(path)!r} contain the colour {colour}, which is not a {label_format.name}"
            f" colour; give {label_format.description} as published, or label maps of class ids"
        )
    return ids.astype(np.uint8)
