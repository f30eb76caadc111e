"""Label names: encodings, renderings that are not labels, pairing, and splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfss_ray.data.label_names import (
    ENCODINGS,
    PLAIN,
    count_missing_splits,
    encoding_of,
    in_split,
    is_auxiliary_name,
    is_label_name,
    pair_names,
)


@pytest.mark.parametrize(
    ("name", "encoding", "label_format"),
    [
        ("aachen/a_gtFine_labelIds", "labelIds", "cityscapes_label_ids"),
        ("a_gtCoarse_labelTrainIds", "labelTrainIds", "train_ids"),
        ("fog/a_gt_labelTrainIds", "labelTrainIds", "train_ids"),
        ("fog/a_gt_ref_labelIds", "labelIds", "cityscapes_label_ids"),
        ("1_gtFine_labellevel3Ids", "labellevel3Ids", "idd_level3"),
        ("1_gtFine_labelids", "labelids", "idd_ids"),
        ("1_gtFine_labelcsIds", "labelcsIds", "cityscapes_label_ids"),
        ("00001_labelTrainIds", "labelTrainIds", "train_ids"),
        ("0a0a-7c_train_id", "train_id", "train_ids"),
        ("0001TP_006690_L", "L", None),
        ("00001", "", None),
        ("_labelIds", "", None),
    ],
)
def test_the_ending_of_a_name_states_its_encoding(name, encoding, label_format):
    stated = encoding_of(name)
    assert (stated.name, stated.format) == (encoding, label_format)
    assert stated in ENCODINGS


@pytest.mark.parametrize(
    ("name", "is_auxiliary", "is_label"),
    [
        ("a_gtFine_color", True, True),
        ("a_gtFine_instanceIds", True, True),
        ("a_gt_invGray", True, True),
        ("a_train_color", True, False),
        ("a_gtFine_labellevel1Ids", True, True),
        ("a_gtFine_labelIds", False, True),
        ("a_labelTrainIds", False, True),
        ("a_leftImg8bit", False, False),
        ("left_L", False, False),
        ("color", False, False),
    ],
)
def test_renderings_and_label_maps_are_told_from_images(name, is_auxiliary, is_label):
    assert is_auxiliary_name(name) == is_auxiliary
    assert is_label_name(name) == is_label


def test_equal_names_are_paired_and_spare_labels_are_listed():
    pairs = pair_names(["b", "a", "x/c"], ["a", "x/c", "d"])
    assert pairs.label_of == {"a": "a", "x/c": "x/c"}
    assert pairs.spare_labels == ["d"]
    assert pairs.notes == []


def test_images_and_reference_images_of_acdc_have_their_own_labels():
    images = ["fog/1_rgb_anon", "fog/1_rgb_ref_anon"]
    labels = ["fog/1_gt_labelIds", "fog/1_gt_ref_labelIds"]
    assert pair_names(images, labels).label_of == dict(zip(images, labels, strict=True))


def test_fine_labels_are_preferred_to_coarse_ones():
    pairs = pair_names(["a_leftImg8bit"], ["a_gtCoarse_labelIds", "a_gtFine_labelIds"])
    assert pairs.label_of == {"a_leftImg8bit": "a_gtFine_labelIds"}


def test_the_most_common_encoding_is_used_and_the_choice_is_described():
    images = [f"{i}_leftImg8bit" for i in range(3)]
    labels = [f"{i}_gtFine_labelTrainIds" for i in range(3)] + ["0_gtFine_labelIds"]
    pairs = pair_names(images, labels)
    assert set(pairs.label_of.values()) == set(labels[:3])
    assert pairs.notes == [
        "1 images have labelTrainIds and labelIds: the labelTrainIds are used (labels_format"
        " cityscapes_label_ids uses the labelIds)"
    ]


def test_of_equally_common_encodings_the_official_one_is_used():
    pairs = pair_names(["a_leftImg8bit"], ["a_gtFine_labelTrainIds", "a_gtFine_labelIds"])
    assert pairs.label_of == {"a_leftImg8bit": "a_gtFine_labelIds"}
    assert "as the official scorer of Cityscapes does" in pairs.notes[0]


def test_a_named_format_excludes_other_encodings():
    images, labels = ["a_leftImg8bit"], ["a_gtFine_labelTrainIds", "a_gtFine_labelIds"]
    assert pair_names(images, labels, "train_ids").label_of == {images[0]: labels[0]}
    assert pair_names(images, labels, "gta5").label_of == {images[0]: labels[1]}
    assert pair_names(images, labels, "synthia").label_of == {}
    train_ids_only = pair_names(images, labels[:1], "synthia")
    assert train_ids_only.label_of == {}
    assert train_ids_only.notes == [
        "1 images have only labelTrainIds, which is not labels_format synthia"
    ]


def test_a_named_format_reads_names_without_an_encoding():
    assert pair_names(["a"], ["a", "a_labelTrainIds"], "synthia").label_of == {"a": "a"}


def test_nothing_is_paired_without_images_or_labels():
    assert pair_names([], ["a"]).spare_labels == ["a"]
    assert pair_names(["a"], []).label_of == {}
    assert encoding_of("") is PLAIN


def test_missing_splits_are_counted_by_their_outermost_folder(tmp_path: Path):
    (tmp_path / "fog" / "train").mkdir(parents=True)
    ids = ["fog/train/a", "fog/test/b", "fog/test/x/c", "test_ref/d", "e", "drive/f"]
    splits = count_missing_splits(ids, tmp_path)
    assert splits == {"fog/test": 2, "test_ref": 1}
    assert [i for i in ids if in_split(i, splits)] == ["fog/test/b", "fog/test/x/c", "test_ref/d"]
