"""The shipped groupings, against the published definitions written out."""

from __future__ import annotations

import pytest

from sfss_ray.data.class_sets import (
    CAMVID_11,
    CITYSCAPES_19,
    SYNTHIA_13,
    SYNTHIA_16,
    class_set_of,
)
from sfss_ray.data.label_tables import IDD_IDS, IDD_LEVEL3, MAPILLARY_65
from sfss_ray.data.shipped_groups import (
    SHIPPED,
    SHIPPED_NAMES,
    shipped_grouping,
    suggested_name,
)
from sfss_ray.errors import DataError

CAMVID = """
sky: sky
building: building, wall
pole: pole
road: road
pavement: sidewalk
tree: vegetation, terrain
sign: traffic light, traffic sign
fence: fence
car: car, truck, bus, train
pedestrian: person
bicyclist: rider, motorcycle, bicycle
"""
CITYSCAPES = [
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
]
MAPILLARY_TO_CITYSCAPES = """
road: Road, Lane Marking - General, Manhole
sidewalk: Curb, Sidewalk
building: Building
wall: Wall
fence: Fence
pole: Pole, Utility Pole
traffic light: Traffic Light
traffic sign: Traffic Sign (Front)
vegetation: Vegetation
terrain: Terrain
sky: Sky
person: Person
rider: Bicyclist, Motorcyclist, Other Rider
car: Car
truck: Truck
bus: Bus
train: On Rails
motorcycle: Motorcycle
bicycle: Bicycle
"""
"""datasets/mapillary.py of shachoi/RobustNet, with the names of its ids."""


def groups_in(text: str) -> dict[str, set[str]]:
    lines = [line.split(": ") for line in text.strip().splitlines()]
    return {name: set(members.split(", ")) for name, members in lines}


def groups_for(name: str, classes) -> dict[str, set[str]]:
    class_set = class_set_of(list(classes))
    return {group: set(members) for group, members in shipped_grouping(name, class_set).groups}


@pytest.mark.parametrize("groups", SHIPPED, ids=lambda groups: groups.name)
def test_every_class_is_listed_once(groups):
    listed = [member for _, members in groups.groups for member in members] + list(groups.dropped)
    assert len(listed) == len(set(listed))
    sources = (CITYSCAPES, SYNTHIA_16.classes, IDD_LEVEL3, IDD_IDS, MAPILLARY_65)
    assert any(set(listed) == set(source) for source in sources)


def test_cityscapes_becomes_camvid():
    groups = shipped_grouping("camvid-11", CITYSCAPES_19)
    assert {name: set(members) for name, members in groups.groups} == groups_in(CAMVID)
    assert groups.dropped == ()
    assert groups.class_set() == CAMVID_11
    assert sorted(m for members in groups_in(CAMVID).values() for m in members) == sorted(
        CITYSCAPES
    )


def test_cityscapes_becomes_the_classes_of_synthia():
    groups = shipped_grouping("synthia-16", CITYSCAPES_19)
    assert groups.class_set() == SYNTHIA_16
    assert set(groups.dropped) == {"terrain", "truck", "train"}
    assert all(members == (name,) for name, members in groups.groups)
    thirteen = shipped_grouping("synthia-13", CITYSCAPES_19)
    assert thirteen.class_set() == SYNTHIA_13
    assert set(thirteen.dropped) == {"terrain", "truck", "train", "wall", "fence", "pole"}
    of_sixteen = shipped_grouping("synthia-13", SYNTHIA_16)
    assert of_sixteen.class_set() == SYNTHIA_13
    assert set(of_sixteen.dropped) == {"wall", "fence", "pole"}


def test_synthia_becomes_camvid():
    expected = groups_in(CAMVID)
    expected |= {"tree": {"vegetation"}, "car": {"car", "bus"}}
    assert groups_for("camvid-11", SYNTHIA_16.classes) == expected


@pytest.mark.parametrize("name", ["cityscapes-19", "bdd100k", "acdc", "mapillary"])
def test_targets_with_cityscapes_classes_drop_the_background(name):
    twenty = class_set_of([*CITYSCAPES, "background"])
    groups = shipped_grouping(name, twenty)
    assert groups.class_set() == CITYSCAPES_19
    assert groups.dropped == ("background",)


def test_cityscapes_becomes_level_3_of_idd():
    groups = groups_for("idd", CITYSCAPES)
    assert groups["non-drivable fallback"] == {"terrain"}
    assert groups["vehicle fallback"] == {"train"}
    assert set(groups) <= set(IDD_LEVEL3)
    assert {m for members in groups.values() for m in members} == set(CITYSCAPES)


def test_idd_becomes_cityscapes():
    expected = {name: {name} for name in CITYSCAPES} | {"terrain": {"non-drivable fallback"}}
    assert groups_for("cityscapes-19", IDD_IDS) == expected
    del expected["train"]
    assert groups_for("cityscapes-18", IDD_LEVEL3) == expected


def test_mapillary_becomes_cityscapes():
    assert groups_for("cityscapes-19", MAPILLARY_65) == groups_in(MAPILLARY_TO_CITYSCAPES)
    with_unlabeled = shipped_grouping("cityscapes-19", class_set_of([*MAPILLARY_65, "Unlabeled"]))
    assert with_unlabeled.class_set() == CITYSCAPES_19
    assert {"Unlabeled", "Bridge", "Ego Vehicle"} <= set(with_unlabeled.dropped)


@pytest.mark.parametrize("extra", ["background", "void", "Unlabeled", "unlabelled", "ignore"])
def test_outputs_that_stand_for_no_class_are_dropped(extra):
    groups = shipped_grouping("camvid-11", class_set_of([extra, *CITYSCAPES]))
    assert groups.dropped == (extra,)
    assert groups.class_set() == CAMVID_11


def test_a_model_of_other_classes_is_refused_in_one_line():
    with pytest.raises(DataError) as error:
        shipped_grouping("camvid-11", class_set_of([*CITYSCAPES, "boat"]))
    assert "'camvid-11' do not fit the model's 20 classes (road, sidewalk" in str(error.value)
    assert "give a mapping, or a JSON or YAML file" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_fitting_grouping_is_suggested():
    twenty = class_set_of([*CITYSCAPES, "background"])
    assert suggested_name(twenty, CAMVID_11) == "camvid-11"
    assert suggested_name(CITYSCAPES_19, SYNTHIA_16) == "synthia-16"
    assert suggested_name(twenty, CITYSCAPES_19) == "cityscapes-19"
    assert suggested_name(CAMVID_11, CITYSCAPES_19) is None
    assert suggested_name(class_set_of(["a", "b"]), CAMVID_11) is None


@pytest.mark.parametrize("labels", [IDD_LEVEL3, IDD_IDS], ids=["level 3", "ids"])
def test_a_grouping_is_suggested_for_labels_with_more_classes(labels):
    """Those of SYNTHIA are all among IDD's too, but drop trucks, which IDD has."""
    idd = class_set_of(labels)
    assert suggested_name(CITYSCAPES_19, idd) == "idd"
    assert suggested_name(class_set_of([*CITYSCAPES, "background"]), idd) == "idd"
    assert suggested_name(SYNTHIA_16, idd) is None
    assert suggested_name(class_set_of(IDD_LEVEL3), CITYSCAPES_19) == "cityscapes-18"
    more = class_set_of([name.title() for name in CAMVID_11.classes] + ["Animal"])
    assert suggested_name(CITYSCAPES_19, more) == "camvid-11"


def test_a_grouping_that_drops_a_class_of_the_labels_is_not_suggested():
    with_truck = class_set_of([*SYNTHIA_16.classes, "truck"])
    assert suggested_name(CITYSCAPES_19, with_truck) is None


def test_names_are_listed_once():
    assert len(SHIPPED_NAMES) == len(set(SHIPPED_NAMES))
    assert set(SHIPPED_NAMES) == {groups.name for groups in SHIPPED}
