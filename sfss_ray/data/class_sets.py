"""Class sets: the meaning of the indices in labels and predictions.

Two class sets are mapped by class NAME, never by index, so a 19-class model can be scored on 16- or
11-class labels. `SYNONYMS` of a name count as the same name; the output reports where they are used.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sfss_ray.errors import DataError
from sfss_ray.storage.text import without_mark

IGNORE_INDEX = 255


@dataclass(frozen=True)
class ClassSet:
    """Class names in index order, with an RGB colour each for pictures."""

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    members: tuple[tuple[str, ...], ...] = field(default=(), compare=False)
    """For classes that are groups: the classes in each of them, see `ClassGroups`."""

    def __post_init__(self):
        if len(self.classes) != len(self.palette):
            raise DataError(
                f"class set {self.name!r}: {len(self.classes)} classes but {len(self.palette)} colours"
            )
        if not 1 <= len(self.classes) < IGNORE_INDEX:
            raise DataError(
                f"class set {self.name!r} has {len(self.classes)} classes: allowed is 1 to 254"
            )
        if not all(self.classes):
            raise DataError(f"class set {self.name!r} has a class without a name: {self.classes}")
        if len(set(self.classes)) != len(self.classes):
            raise DataError(f"class set {self.name!r} names a class twice: {self.classes}")

    def __len__(self) -> int:
        return len(self.classes)

    def colour(self, train_ids: np.ndarray) -> np.ndarray:
        """Return the colours of (H, W) train ids as (H, W, 3) uint8 RGB; ignored pixels are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.palette)] = self.palette
        return table[train_ids]


_CITYSCAPES = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
CITYSCAPES_LABEL_IDS = dict(
    zip(
        _CITYSCAPES,
        (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
        strict=True,
    )
)
"""Class name -> Cityscapes labelId (cityscapesScripts, labels.py), in the order of the train ids."""
_CAMVID = {
    "sky": (70, 130, 180),
    "building": (70, 70, 70),
    "pole": (153, 153, 153),
    "road": (128, 64, 128),
    "pavement": (244, 35, 232),
    "tree": (107, 142, 35),
    "sign": (220, 220, 0),
    "fence": (190, 153, 153),
    "car": (0, 0, 142),
    "pedestrian": (220, 20, 60),
    "bicyclist": (119, 11, 32),
}


def _from_colours(name: str, colours: dict[str, tuple[int, int, int]]) -> ClassSet:
    return ClassSet(name, tuple(colours), tuple(colours.values()))


CITYSCAPES_19 = _from_colours("cityscapes-19", _CITYSCAPES)
_NOT_IN_SYNTHIA = ("terrain", "truck", "train")
SYNTHIA_16 = _from_colours(
    "synthia-16", {k: v for k, v in _CITYSCAPES.items() if k not in _NOT_IN_SYNTHIA}
)
_NOT_IN_13 = (*_NOT_IN_SYNTHIA, "wall", "fence", "pole")
SYNTHIA_13 = _from_colours(
    "synthia-13", {k: v for k, v in _CITYSCAPES.items() if k not in _NOT_IN_13}
)
CAMVID_11 = _from_colours("camvid-11", _CAMVID)
CLASS_SETS = {
    class_set.name: class_set for class_set in (CITYSCAPES_19, SYNTHIA_16, SYNTHIA_13, CAMVID_11)
}


def class_set_of(classes: tuple[str, ...] | list[str], name: str = "custom") -> ClassSet:
    """Return the named set with exactly these classes, or a custom one called `name`.

    Classes of a custom set keep their Cityscapes colours. Other classes get random colours that are
    the same in every run.
    """
    classes = tuple(classes)
    for class_set in CLASS_SETS.values():
        if class_set.classes == classes:
            return class_set
    rng = np.random.default_rng(0)
    random_colours = rng.integers(30, 256, (len(classes), 3)).tolist()
    palette = tuple(
        _CITYSCAPES.get(class_name, (red, green, blue))
        for class_name, (red, green, blue) in zip(classes, random_colours, strict=True)
    )
    return ClassSet(name, classes, palette)


def find_class_set(name: str) -> ClassSet:
    """Return the class set of a name.

    Raises:
        DataError: the name is unknown; lists the known ones.
    """
    if name not in CLASS_SETS:
        raise DataError(
            f"unknown class set {name!r}: known are {', '.join(CLASS_SETS)}; or name the classes"
            " themselves, separated by commas"
        )
    return CLASS_SETS[name]


def parse_classes(text: str) -> ClassSet:
    """Return a class set from its name (cityscapes-19) or from comma-separated class names.

    The name of a class set among others stands for its classes, as in `cityscapes-19,background`.

    Raises:
        DataError: the name is unknown, or the class names are empty or repeated.
    """
    text = without_mark(text).strip()
    if "," in text:
        parts = [part.strip() for part in text.split(",")]
        groups = [CLASS_SETS[part].classes if part in CLASS_SETS else (part,) for part in parts]
        return class_set_of([name for names in groups for name in names])
    return find_class_set(text)


SYNONYMS = {
    "pavement": "sidewalk",
    "pedestrian": "person",
    "tree": "vegetation",
    "sign": "traffic sign",
    "sign symbol": "traffic sign",
    "column pole": "pole",
    "motorbike": "motorcycle",
}
"""Class name -> Cityscapes' name of the same class.

The names are CamVid's, and Pascal VOC's motorbike. CamVid's 11 classes are groups of its 32: its tree
covers all vegetation, its sign also traffic lights, its car also trucks and buses. `bicyclist` has no
synonym, since it covers both bicycle and rider, which Cityscapes separates.
"""


def plain_name(name: str) -> str:
    """Return a class name in lower case, with single blanks for `_`, `-` and blanks."""
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def _canonical_name(name: str) -> str:
    """Return the Cityscapes name of a class; case, `_` and `-` make no difference."""
    plain = plain_name(name)
    return SYNONYMS.get(plain, plain)


def matched_names(source: ClassSet, target: ClassSet) -> dict[str, str]:
    """Return name in `source` -> name of the same class in `target`, without unmatched names.

    Equal names are matched first. A member of a group of `target` is matched to the group. A synonym is
    matched only if it is unambiguous: exactly one name in `target` has that meaning, and `source` does
    not contain this name itself.
    """
    matched = {}
    group_of = groups_of_members(target)
    for name in source.classes:
        canonical = _canonical_name(name)
        candidates = [other for other in target.classes if _canonical_name(other) == canonical]
        if name in target.classes:
            matched[name] = name
        elif name in group_of:
            matched[name] = group_of[name]
        elif len(candidates) == 1 and candidates[0] not in source.classes:
            matched[name] = candidates[0]
    return matched


def groups_of_members(classes: ClassSet) -> dict[str, str]:
    """Return member -> group for classes that are groups."""
    groups = zip(classes.classes, classes.members, strict=bool(classes.members))
    return {member: group for group, members in groups for member in members}


def joined_in(matched: dict[str, str], target: ClassSet) -> dict[str, str]:
    """Return the matches of classes with the groups in `target` that they are members of."""
    group_of = groups_of_members(target)
    return {a: b for a, b in matched.items() if a != b and group_of.get(a) == b}


def synonyms_in(matched: dict[str, str], target: ClassSet) -> dict[str, str]:
    """Return the matches whose two names differ, other than members of groups in `target`."""
    joined = joined_in(matched, target)
    return {name: other for name, other in matched.items() if name not in (other, *joined)}


def synonyms_line(synonyms: dict[str, str]) -> str:
    """Return 'matched as synonyms: pavement = sidewalk'."""
    return "matched as synonyms: " + ", ".join(f"{a} = {b}" for a, b in synonyms.items())


def joined_line(joined: dict[str, str]) -> str:
    """Return 'classes of the labels joined as the groups state: terrain in tree, truck in car'."""
    pairs = ", ".join(f"{member} in {group}" for member, group in joined.items())
    return f"classes of the labels joined as the groups state: {pairs}"


def mapping_table(source: ClassSet, target: ClassSet) -> np.ndarray:
    """Return a (256,) uint8 table: index in `source` -> index of the same class in `target`, or 255."""
    table = np.full(256, IGNORE_INDEX, np.uint8)
    for name, other in matched_names(source, target).items():
        table[source.classes.index(name)] = target.classes.index(other)
    return table
