"""The line on predicted classes that labels cannot show."""

from __future__ import annotations

from sfss_ray.data.class_sets import CAMVID_11, CITYSCAPES_19, SYNTHIA_16, class_set_of
from sfss_ray.data.label_tables import IDD_LEVEL3
from sfss_ray.data.shipped_groups import shipped_grouping
from sfss_ray.evaluation.unmatched import MIN_PERCENT, unmatched_note


def percents(**by_name: float) -> list[float]:
    """Percent of the pixels by class of Cityscapes; road has the rest."""
    named = {name.replace("_", " "): percent for name, percent in by_name.items()}
    rest = 100 - sum(named.values())
    return [named.get(name, rest if name == "road" else 0.0) for name in CITYSCAPES_19.classes]


def test_predicted_classes_that_labels_cannot_show_are_listed_with_the_grouping():
    shares = percents(truck=3.14, rider=0.5, wall=0.4, car=10.0, sidewalk=5.0)
    note = unmatched_note(CITYSCAPES_19, CAMVID_11, shares)
    listed = "truck 3.1 %, rider 0.5 %, wall 0.4 %, together 4.0 % of the pixels"
    assert f"in the labels' camvid-11: {listed}; the scores" in note
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


def test_rare_classes_count_together():
    """Six classes of 0.45 % are 2.7 % of the pixels."""
    names = ("rider", "truck", "bus", "train", "motorcycle", "bicycle")
    note = unmatched_note(CITYSCAPES_19, CAMVID_11, percents(**dict.fromkeys(names, 0.45)))
    listed = ", ".join(f"{name} 0.5 %" for name in names[:5])
    assert f"{listed}, 1 more, together 2.7 % of the pixels" in note
    assert unmatched_note(CITYSCAPES_19, CAMVID_11, percents(truck=0.24, rider=0.24)) == ""
    assert "truck 0.5 % of the" in unmatched_note(
        CITYSCAPES_19, CAMVID_11, percents(truck=MIN_PERCENT)
    )


def test_labels_with_more_classes_than_a_grouping_name_it():
    """IDD's labels also distinguish curbs, billboards and autorickshaws."""
    idd = class_set_of(IDD_LEVEL3, "idd-26")
    note = unmatched_note(CITYSCAPES_19, idd, percents(terrain=2.0, train=0.3, truck=1.0))
    assert "in the labels' idd-26: terrain 2.0 %, train 0.3 %, together 2.3 %" in note
    assert note.endswith("class_groups idd joins them (--class-groups idd)")


def test_without_a_shipped_grouping_groups_in_general_are_named():
    classes, labels = class_set_of(["road", "lane"]), class_set_of(["road", "sky"])
    note = unmatched_note(classes, labels, [60.0, 40.0])
    assert "lane 40.0 % of the pixels" in note
    assert note.endswith("class groups can join them (class_groups, --class-groups)")
