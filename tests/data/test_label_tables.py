"""Published tables of label encodings."""

from __future__ import annotations

from sfss_ray.data.class_sets import CAMVID_11, CITYSCAPES_19
from sfss_ray.data.label_tables import CAMVID_COLOURS, IDD_IDS, IDD_LEVEL3


def test_idd_tables_have_unique_names_and_the_published_anchors():
    """Ids as in AutoNUE/public-code: anue_labels.py lists (name, id, ..., level3Id)."""
    assert (len(set(IDD_IDS)), len(set(IDD_LEVEL3))) == (len(IDD_IDS), len(IDD_LEVEL3)) == (35, 26)
    anchors = [("road", 0, 0), ("rider", 8, 5), ("autorickshaw", 11, 8), ("car", 12, 9)]
    anchors += [("building", 29, 22), ("vegetation", 32, 24), ("sky", 33, 25)]
    for name, class_id, level3_id in anchors:
        assert (IDD_IDS.index(name), IDD_LEVEL3.index(name)) == (class_id, level3_id)


def test_level3_classes_are_ids_of_idd_in_the_same_order():
    positions = [IDD_IDS.index(name) for name in IDD_LEVEL3]
    assert positions == sorted(positions)


def test_camvid_has_32_distinct_colours_in_all_11_classes():
    colours = [colour for colour, _ in CAMVID_COLOURS]
    assert len(set(colours)) == len(colours) == 32
    assert {name for _, name in CAMVID_COLOURS if name} == set(CAMVID_11.classes)
    assert [colour for colour, name in CAMVID_COLOURS if name is None] == [(0, 0, 0)]
    assert all(channel in (0, 64, 128, 192) for colour in colours for channel in colour)


def test_road_of_camvid_has_the_colour_of_cityscapes():
    road = CITYSCAPES_19.palette[CITYSCAPES_19.classes.index("road")]
    assert dict(CAMVID_COLOURS)[road] == "road"
