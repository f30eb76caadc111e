"""Class groups: their rules, how they fit a model, and what they say of themselves."""

from __future__ import annotations

import pytest

from sfss_ray.data.class_groups import ClassGroups
from sfss_ray.data.class_sets import CAMVID_11, class_set_of, joined_in, matched_names, synonyms_in
from sfss_ray.errors import DataError

CLASSES = class_set_of(["road", "car", "truck", "traffic light", "background"])
GROUPS = ClassGroups(
    "mine",
    (("street", ("road",)), ("vehicle", ("car", "truck")), ("traffic light", ("traffic light",))),
    ("background",),
)


def refusal(groups: tuple, dropped: tuple[str, ...] = ()) -> str:
    """Return the error that groups cause, which must be a single line."""
    with pytest.raises(DataError) as error:
        ClassGroups("mine", groups, dropped).fitted(CLASSES)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_groups_become_a_class_set_with_members():
    fitted = GROUPS.fitted(CLASSES)
    assert fitted == GROUPS
    classes = fitted.class_set()
    assert (classes.name, classes.classes) == ("mine", ("street", "vehicle", "traffic light"))
    assert classes.members == (("road",), ("car", "truck"), ("traffic light",))
    assert fitted.member_indices(CLASSES) == ((0,), (1, 2), (3,))
    assert classes == class_set_of(classes.classes, "mine")


def test_known_classes_keep_their_name_and_colours():
    groups = ClassGroups("mine", tuple((name, (name,)) for name in CAMVID_11.classes))
    classes = groups.fitted(CAMVID_11).class_set()
    assert (classes.name, classes.palette) == ("camvid-11", CAMVID_11.palette)


def test_names_differ_in_case_and_separators_only():
    groups = ClassGroups(
        "mine", (("all", ("ROAD", "Car", "truck", "Traffic-Light", "background")),)
    )
    assert groups.fitted(CLASSES).groups == (("all", CLASSES.classes),)


def test_groups_are_described_in_a_line_and_survive_plain_values():
    assert GROUPS.line() == (
        "street = road; vehicle = car + truck; traffic light; dropped: background"
    )
    assert ClassGroups.from_dict(GROUPS.to_dict()) == GROUPS


ALL = ("road", "car", "truck", "traffic light")


def test_an_unknown_class_is_named_with_a_similar_one():
    message = refusal((("all", (*ALL, "backgroud")),))
    assert "group 'all' lists 'backgroud', which is not a class of the model" in message
    assert "similar: 'background'" in message
    assert "its classes are road, car, truck, traffic light, background" in message
    assert "'dropped' lists 'void'" in refusal((("all", CLASSES.classes),), ("void",))


def test_a_class_that_is_left_out_is_named_with_the_way_to_drop_it():
    message = refusal((("all", ALL),))
    assert "'mine' leave out 'background' of the model's classes" in message
    assert message.endswith('add it to a group, or drop it with "dropped": ["background"]')
    assert "leave out 'car' and 3 more of the model's" in refusal((("street", ("road",)),))


@pytest.mark.parametrize(
    ("groups", "dropped", "places"),
    [
        ((("a", ("road", "car")), ("b", ("road",))), (), "group 'a' and in group 'b'"),
        ((("a", ("road", "road")),), (), "group 'a' and in group 'a'"),
        ((("a", ("road", "car")),), ("road",), "group 'a' and in 'dropped'"),
    ],
)
def test_a_class_that_is_listed_twice_is_named(groups, dropped, places):
    assert f"list 'road' twice, in {places}: list each class once" in refusal(groups, dropped)


def test_two_spellings_of_a_class_are_the_same_class():
    assert "list 'traffic light' twice" in refusal((("a", ("traffic light", "Traffic Light")),))


def test_empty_and_repeated_groups_are_refused():
    assert "have no group" in refusal(())
    assert "group 'a' has no class" in refusal((("a", ()),))
    assert "two groups called 'a'" in refusal((("a", ("road",)), ("a", ("car",))))


def test_labels_of_the_members_are_matched_to_the_groups():
    target = GROUPS.class_set()
    labels = class_set_of(["car", "truck", "street", "sky", "background"])
    matched = matched_names(labels, target)
    assert matched == {"car": "vehicle", "truck": "vehicle", "street": "street"}
    assert joined_in(matched, target) == {"car": "vehicle", "truck": "vehicle"}
    assert synonyms_in(matched, target) == {}
