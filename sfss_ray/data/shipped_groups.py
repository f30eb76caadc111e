"""Groupings of the field that ship with this package, chosen by the name of the target.

Each grouping is the label convention of a published benchmark, applied to the outputs of a model.
"""

from __future__ import annotations

from collections.abc import Sequence

from sfss_ray.data.class_groups import ClassGroups
from sfss_ray.data.class_sets import (
    CAMVID_11,
    CITYSCAPES_19,
    SYNTHIA_13,
    SYNTHIA_16,
    ClassSet,
    matched_names,
    plain_name,
)
from sfss_ray.data.label_tables import IDD_IDS, IDD_LEVEL3, MAPILLARY_65
from sfss_ray.errors import DataError

NO_CLASS = ("background", "void", "unlabeled", "unlabelled", "ignore")
"""Names of outputs that stand for no class. A shipped grouping drops them without listing them."""

# CamVid's 11 classes in terms of Cityscapes' 19, as for CamVid's own 32 colours: its wall is building,
# its truck and bus are car, its motorcycle is bicyclist (the groups of MathWorks' CamVid example).
_CAMVID = {
    "sky": ("sky",),
    "building": ("building", "wall"),
    "pole": ("pole",),
    "road": ("road",),
    "pavement": ("sidewalk",),
    "tree": ("vegetation", "terrain"),
    "sign": ("traffic light", "traffic sign"),
    "fence": ("fence",),
    "car": ("car", "truck", "bus", "train"),
    "pedestrian": ("person",),
    "bicyclist": ("rider", "motorcycle", "bicycle"),
}
# IDD's level 3 classes in terms of Cityscapes' 19, the column csTrainId of AutoNUE/public-code's
# anue_labels.py read backwards: terrain is its non-drivable fallback, and train is in vehicle fallback.
_IDD_NAMES = {"terrain": "non-drivable fallback", "train": "vehicle fallback"}
# The same column read forwards, for the outputs of a model that was trained on IDD. Level 3 has no
# train, so 18 classes are left.
_FROM_IDD = {"terrain": ("non-drivable fallback",)}
# Mapillary Vistas 1.2 in terms of Cityscapes' 19: the evaluation of RobustNet (Choi et al., CVPR 2021,
# datasets/mapillary.py of shachoi/RobustNet), which the benchmarks of domain generalisation share.
# Classes that it ignores in labels are dropped.
_FROM_MAPILLARY = {
    "road": ("Road", "Lane Marking - General", "Manhole"),
    "sidewalk": ("Curb", "Sidewalk"),
    "pole": ("Pole", "Utility Pole"),
    "traffic sign": ("Traffic Sign (Front)",),
    "rider": ("Bicyclist", "Motorcyclist", "Other Rider"),
    "train": ("On Rails",),
}


def _grouping(name: str, classes: Sequence[str], groups: dict[str, tuple[str, ...]]) -> ClassGroups:
    """Return a grouping of these classes; those in no group are dropped."""
    members = {member for group in groups.values() for member in group}
    dropped = tuple(c for c in classes if c not in members and plain_name(c) not in NO_CLASS)
    return ClassGroups(name, tuple(groups.items()), dropped)


def _selection(name: str, classes: Sequence[str], selected: Sequence[str]) -> ClassGroups:
    """Return the grouping that keeps some classes as they are."""
    return _grouping(name, classes, {c: (c,) for c in selected})


def _within(
    classes: Sequence[str], groups: dict[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Return groups without the members that are none of the classes."""
    return {name: tuple(m for m in group if m in classes) for name, group in groups.items()}


def _to_cityscapes(classes: Sequence[str], groups: dict[str, tuple[str, ...]]) -> ClassGroups:
    """Return a grouping to Cityscapes' classes; a class without a group is the one of the same name."""
    by_name = {plain_name(c): (c,) for c in classes}
    members = {c: groups.get(c) or by_name.get(c) for c in CITYSCAPES_19.classes}
    present = {c: group for c, group in members.items() if group}
    return _grouping(f"cityscapes-{len(present)}", classes, present)


_CITY, _SYNTHIA = CITYSCAPES_19.classes, SYNTHIA_16.classes
SHIPPED = (
    _grouping(CAMVID_11.name, _CITY, _CAMVID),
    _grouping(CAMVID_11.name, _SYNTHIA, _within(_SYNTHIA, _CAMVID)),
    # SYNTHIA has no terrain, truck and train. mIoU-13 leaves out wall, fence and pole too (Tsai et al.,
    # CVPR 2018, and later work).
    _selection(SYNTHIA_16.name, _CITY, _SYNTHIA),
    _selection(SYNTHIA_13.name, _CITY, SYNTHIA_13.classes),
    _selection(SYNTHIA_13.name, _SYNTHIA, SYNTHIA_13.classes),
    # BDD100K's semantic segmentation (Yu et al., CVPR 2020) and ACDC (Sakaridis et al., ICCV 2021) are
    # labelled with Cityscapes' 19 classes. Labels of Mapillary have other classes: the label format
    # `mapillary` maps their ids to the 19.
    *(
        _selection(name, _CITY, _CITY)
        for name in (CITYSCAPES_19.name, "bdd100k", "acdc", "mapillary")
    ),
    _grouping("idd", _CITY, {_IDD_NAMES.get(c, c): (c,) for c in _CITY}),
    _to_cityscapes(IDD_LEVEL3, _FROM_IDD),
    _to_cityscapes(IDD_IDS, _FROM_IDD),
    _to_cityscapes(MAPILLARY_65, _FROM_MAPILLARY),
)
"""Groupings by target; several may have the same target and be for different models."""
SHIPPED_NAMES = tuple(dict.fromkeys(groups.name for groups in SHIPPED))


def shipped_grouping(name: str, classes: ClassSet) -> ClassGroups:
    """Return the shipped grouping of a target for a model.

    Args:
        name: One of `SHIPPED_NAMES`.
        classes: The model's classes. Those called as in `NO_CLASS` are dropped.

    Raises:
        DataError: no grouping of this target is for these classes.
    """
    fitting = _fitting([groups for groups in SHIPPED if groups.name == name], classes)
    if fitting is None:
        raise DataError(
            f"class groups {name!r} do not fit the model's {len(classes)} classes"
            f" ({', '.join(classes.classes)}): give a mapping, or a JSON or YAML file, of each group's"
            " classes"
        )
    return fitting


def suggested_name(classes: ClassSet, label_classes: ClassSet) -> str | None:
    """Return the name of the first shipped grouping that fits a model and labels, if any.

    All its groups are classes of the labels, which may have more, and it drops no class of the model
    that the labels can show.
    """
    label_names = {plain_name(name) for name in label_classes.classes}
    matched_classes = set(matched_names(label_classes, classes).values())
    for groups in SHIPPED:
        fitting = _fitting([groups], classes)
        if fitting is None or matched_classes.intersection(fitting.dropped):
            continue
        if {plain_name(name) for name, _ in groups.groups} <= label_names:
            return groups.name
    return None


def _fitting(candidates: Sequence[ClassGroups], classes: ClassSet) -> ClassGroups | None:
    """Return the first grouping that lists exactly a model's classes, those of NO_CLASS aside."""
    no_class = tuple(c for c in classes.classes if plain_name(c) in NO_CLASS)
    for groups in candidates:
        try:
            return ClassGroups(groups.name, groups.groups, (*groups.dropped, *no_class)).fitted(
                classes
            )
        except DataError:
            continue
    return None
