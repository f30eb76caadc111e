"""Class sets, and their mapping by name."""

from __future__ import annotations

import numpy as np
import pytest

from sfss_ray.data.class_sets import (
    CAMVID_11,
    CITYSCAPES_19,
    CLASS_SETS,
    IGNORE_INDEX,
    SYNTHIA_13,
    SYNTHIA_16,
    ClassSet,
    class_set_of,
    find_class_set,
    mapping_table,
    matched_names,
    parse_classes,
    synonyms_in,
)
from sfss_ray.errors import DataError

GREY = (9, 9, 9)
SAME_IN_CAMVID = {
    "sidewalk": "pavement",
    "vegetation": "tree",
    "traffic sign": "sign",
    "person": "pedestrian",
}


def test_the_named_sets_have_the_sizes_in_their_names():
    assert {name: len(class_set) for name, class_set in CLASS_SETS.items()} == {
        "cityscapes-19": 19,
        "synthia-13": 13,
        "synthia-16": 16,
        "camvid-11": 11,
    }
    assert CITYSCAPES_19.classes[13] == "car"
    assert CAMVID_11.classes[8] == "car"


def test_classes_are_mapped_by_name():
    table = mapping_table(CITYSCAPES_19, CAMVID_11)
    assert (table.shape, table.dtype) == ((256,), np.uint8)
    for source, target in enumerate(table[:19]):
        name = CITYSCAPES_19.classes[source]
        other = SAME_IN_CAMVID.get(name, name)
        expected = CAMVID_11.classes.index(other) if other in CAMVID_11.classes else IGNORE_INDEX
        assert target == expected
    assert table[13] == 8
    assert (table[19:] == IGNORE_INDEX).all()


def test_synonyms_match_only_if_unambiguous():
    both = class_set_of(["tree", "vegetation", "road"])
    assert matched_names(both, CITYSCAPES_19) == {"vegetation": "vegetation", "road": "road"}
    assert matched_names(CITYSCAPES_19, both)["vegetation"] == "vegetation"
    two = class_set_of(["person", "pedestrian"])
    assert matched_names(class_set_of(["Person"]), two) == {}
    parts = class_set_of(["Sign_Symbol", "column-pole", "traffic_light", "bicyclist", "trees"])
    assert matched_names(parts, CITYSCAPES_19) == {
        "Sign_Symbol": "traffic sign",
        "column-pole": "pole",
        "traffic_light": "traffic light",
    }


def test_camvid_bicyclist_matches_neither_bicycle_nor_rider():
    matched = matched_names(CAMVID_11, CITYSCAPES_19)
    assert set(CAMVID_11.classes) - set(matched) == {"bicyclist"}
    assert synonyms_in(matched, CITYSCAPES_19) == {
        other: name for name, other in SAME_IN_CAMVID.items()
    }


@pytest.mark.parametrize("class_set", CLASS_SETS.values(), ids=CLASS_SETS)
def test_no_named_set_contains_two_synonyms(class_set):
    assert matched_names(class_set, class_set) == {name: name for name in class_set.classes}
    upper_case = class_set_of([name.upper() for name in class_set.classes])
    assert list(matched_names(upper_case, class_set).values()) == list(class_set.classes)


def test_mapping_a_set_onto_itself_changes_nothing():
    assert mapping_table(CAMVID_11, CAMVID_11)[:11].tolist() == list(range(11))


def test_label_maps_are_coloured_by_the_palette_with_ignored_pixels_black():
    colours = CITYSCAPES_19.colour(np.array([[0, 18, IGNORE_INDEX]], np.uint8))
    assert colours.tolist() == [[[128, 64, 128], [119, 11, 32], [0, 0, 0]]]


def test_classes_are_parsed_from_a_set_name_or_a_list():
    assert parse_classes("camvid-11") is CAMVID_11
    assert parse_classes(" road, sky ,boat").classes == ("road", "sky", "boat")
    assert parse_classes(",".join(CITYSCAPES_19.classes)) is CITYSCAPES_19


def test_custom_sets_keep_cityscapes_colours_and_have_stable_other_colours():
    first, second = class_set_of(["boat", "car"]), class_set_of(["boat", "car"])
    assert first == second
    assert first.name == "custom"
    assert first.palette[1] == (0, 0, 142)
    assert first.palette[0] != (0, 0, 0)


def test_an_unknown_set_name_is_refused_with_the_known_names():
    with pytest.raises(
        DataError,
        match=r"'ade20k': known are cityscapes-19, synthia-16, synthia-13, camvid-11; or name",
    ):
        find_class_set("ade20k")
    with pytest.raises(DataError, match="unknown class set"):
        parse_classes("road")


@pytest.mark.parametrize(
    ("classes", "palette", "reason"),
    [
        ((), (), "has 0 classes: allowed is 1 to 254"),
        (tuple(map(str, range(255))), (GREY,) * 255, "has 255 classes"),
        (("a", "b"), (GREY,), "2 classes but 1 colours"),
        (("a", "b", "a"), (GREY,) * 3, "names a class twice"),
        (("a", ""), (GREY,) * 2, "class without a name"),
    ],
)
def test_invalid_sets_are_refused(classes, palette, reason):
    with pytest.raises(DataError, match=f"'mine'.*{reason}"):
        ClassSet("mine", classes, palette)


@pytest.mark.parametrize("text", ["road,road", "road,", ",", "road,,sky"])
def test_invalid_class_lists_are_refused(text):
    with pytest.raises(DataError, match="custom"):
        parse_classes(text)


def test_the_sets_of_13_and_16_classes_are_subsets_of_the_19():
    missing = [c for c in CITYSCAPES_19.classes if c not in SYNTHIA_16.classes]
    assert missing == ["terrain", "truck", "train"]
    missing = [c for c in SYNTHIA_16.classes if c not in SYNTHIA_13.classes]
    assert sorted(missing) == ["fence", "pole", "wall"]


def test_the_name_of_a_set_among_class_names_stands_for_its_classes():
    """Many networks of Cityscapes have a 20th output for background."""
    classes = parse_classes("cityscapes-19, background")
    assert classes.classes == (*CITYSCAPES_19.classes, "background")
    with pytest.raises(DataError, match="names a class twice"):
        parse_classes("cityscapes-19,road")
