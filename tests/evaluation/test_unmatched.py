"""The line on predicted classes that labels cannot show."""

from __future__ import annotations

from sfss_ray.data.class_sets import CAMVID_11, CITYSCAPES_19, SYNTHIA_16, class_set_of
from sfss_ray.data.shipped_groups import shipped_grouping
from sfss_ray.evaluation.unmatched import MIN_PERCENT, unmatched_note


def percents(**by_name: float) -> list[float]:
    """Percent of the pixels by class of Cityscapes; road has the rest."""
    named = {name.replace("_", " "): percent for name, percent in by_name.items()}
    rest = 100 - sum(named.values())
    return [named.get(name, rest if name == "road" else 0.0) for name in CITYSCAPES_19.classes]


def test_predicted_classes_that_labels_cannot_show_are_listed_with_the_grouping():
    shares = percents(truck=3.14, rider=MIN_PERCENT, wall=0.4, car=10.0, sidewalk=5.0)
    note = unmatched_note(CITYSCAPES_19, CAMVID_11, shares)
    assert "in the labels' camvid-11: rider 0.5 %, truck 3.1 % of the pixels" in note
    assert note.endswith("class_groups camvid-11 joins them (--class-groups camvid-11)")
    assert "class_groups synthia-16" in unmatched_note(CITYSCAPES_19, SYNTHIA_16, shares)
    assert "\n" not in note


def test_nothing_is_said_of_classes_that_match_or_are_rare():
    assert unmatched_note(CITYSCAPES_19, CAMVID_11, percents(truck=0.4, car=10.0)) == ""
    assert unmatched_note(CITYSCAPES_19, CITYSCAPES_19, percents(truck=50.0)) == ""
    groups = shipped_grouping("camvid-11", CITYSCAPES_19).class_set()
    equal = [100 / 11] * 11
    assert unmatched_note(groups, CAMVID_11, equal) == ""
    assert unmatched_note(groups, CITYSCAPES_19, equal) == ""


def test_without_a_shipped_grouping_groups_in_general_are_named():
    classes, labels = class_set_of(["road", "lane"]), class_set_of(["road", "sky"])
    note = unmatched_note(classes, labels, [60.0, 40.0])
    assert "lane 40.0 % of the pixels" in note
    assert note.endswith("class groups can join them (class_groups, --class-groups)")
