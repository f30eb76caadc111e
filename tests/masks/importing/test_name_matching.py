"""Names of entries and images: equal, one the end of the other, or ambiguous."""

from __future__ import annotations

import pytest

from sfss_ray.masks.importing.name_matching import match_names, name_of_file


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a.jpg", "a"),
        ("val/frame.01.png", "val/frame.01"),
        ("./val/a.png", "val/a"),
        ("..\\data\\upload\\1-a.jpg", "../data/upload/1-a"),
        ("000042", "000042"),
        (".hidden", ".hidden"),
        ("b\udce9.png", "b\\xe9"),
        ("val/b\\xe9.png", "val/b\\xe9"),
    ],
)
def test_names_are_paths_without_suffix(text, name):
    assert name_of_file(text) == name


def test_equal_names_belong_together():
    matching = match_names(["a", "b/c"], ["a", "b/c", "d"])
    assert matching.entry_of == {"a": "a", "b/c": "b/c"}
    assert (matching.ambiguous, matching.spare) == ({}, [])


def test_one_name_may_be_the_end_of_the_other():
    matching = match_names(["val2017/a", "b", "xc"], ["a", "deep/folder/b", "c"])
    assert matching.entry_of == {"a": "val2017/a", "deep/folder/b": "b"}
    assert matching.spare == ["xc"]


def test_names_in_other_folders_do_not_match():
    assert match_names(["train/a"], ["val/a"]).spare == ["train/a"]


def test_an_equal_name_wins_over_an_end():
    matching = match_names(["train/a", "a"], ["a"])
    assert matching.entry_of == {"a": "a"}
    assert matching.ambiguous == {}


def test_an_entry_of_two_images_is_ambiguous():
    matching = match_names(["a"], ["x/a", "y/a"])
    assert matching.entry_of == {}
    assert set(matching.ambiguous) == {"x/a", "y/a"}
    assert "'a' may belong to each of 2 images named 'a'" in matching.ambiguous["y/a"]
    assert matching.spare == []


def test_two_entries_of_an_image_are_ambiguous():
    matching = match_names(["train/a", "val/a"], ["a"])
    assert matching.entry_of == {}
    assert "'train/a' and 'val/a' may both belong to it" in matching.ambiguous["a"]


def test_images_may_have_a_second_name():
    matching = match_names(
        ["aachen/a_1", "b"],
        ["aachen/a_1_leftImg8bit", "b"],
        lambda image_id: image_id.removesuffix("_leftImg8bit"),
    )
    assert matching.entry_of == {"aachen/a_1_leftImg8bit": "aachen/a_1", "b": "b"}
