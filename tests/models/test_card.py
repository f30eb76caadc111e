"""Tests of the card: allowed ranges, the plain form, and the forms in which users give it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sfss_ray import Card
from sfss_ray.data.class_sets import CAMVID_11
from sfss_ray.errors import CheckpointError, DataError, SfssError
from sfss_ray.models.card import IMAGENET_MEAN, card_values, class_names

CAFFE = Card((104.0, 117.0, 123.0), (1.0, 1.0, 1.0), "bgr", 255, True, ("road", "sky"))


def test_a_card_survives_plain_json():
    assert Card.from_dict(json.loads(json.dumps(CAFFE.to_dict()))) == CAFFE
    assert Card.from_dict({}) == Card()
    assert Card().mean == IMAGENET_MEAN


def test_classes_may_be_named_by_their_set():
    assert Card.from_dict({"classes": "camvid-11"}).classes == CAMVID_11.classes
    assert Card.from_dict({"classes": ["a", "b"]}).classes == ("a", "b")
    assert card_values({"classes": "road, sky"}) == {"classes": ["road", "sky"]}
    assert class_names(CAMVID_11) == class_names("camvid-11") == CAMVID_11.classes
    with pytest.raises(DataError, match=r"classes are \[1\]: give a class set's name"):
        class_names([1])  # pyright: ignore[reportArgumentType]


def test_replaced_entries_leave_the_others():
    card = CAFFE.replaced({"value_range": 1})
    assert card.value_range == 1.0
    assert card.to_dict() | {"value_range": 255.0} == CAFFE.to_dict()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"mean": [1, 2]}, "mean is [1, 2]: allowed are three numbers"),
        ({"mean": "abc"}, "mean is 'abc'"),
        ({"std": [1, 0, 1]}, "std is (1.0, 0.0, 1.0): allowed are three numbers above 0"),
        ({"std": [1, float("nan"), 1]}, "std is"),
        ({"mean": [True, False, True]}, "mean is [True, False, True]: allowed are three numbers"),
        ({"mean": [10**400, 0, 0]}, "allowed are three numbers"),
        ({"value_range": True}, "value_range is True: allowed is 1 or 255"),
        (
            {"classes": []},
            "classes is empty: give the names of the outputs, or leave the entry out",
        ),
        ({"channel_order": "BGR"}, "channel_order is 'BGR': allowed is rgb or bgr"),
        ({"value_range": 256}, "value_range is 256: allowed is 1 or 255"),
        ({"align_corners": 1}, "align_corners is 1: allowed is true or false"),
        ({"classes": 19}, "classes are 19"),
        ({"classes": "ade20k"}, "unknown class set 'ade20k'"),
        ({"means": [1, 2, 3]}, "unknown entry 'means': known are mean, std, channel_order"),
    ],
)
def test_invalid_entries_are_refused(entries, message):
    with pytest.raises(SfssError) as error:
        card_values(entries)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_cards_are_read_from_json_files(tmp_path: Path):
    path = tmp_path / "card.json"
    path.write_text('{"value_range": 255}')
    assert card_values(path) == card_values(str(path)) == {"value_range": 255}
    assert card_values(None) == {}
    assert "classes" not in card_values(Card())
    assert Card.from_dict(card_values(CAFFE)) == CAFFE
    for content, reason in (("no json", "it is not JSON"), ("[1]", "is not a JSON object")):
        path.write_text(content)
        with pytest.raises(SfssError, match=rf"card\.json.*{reason}"):
            card_values(path)
    with pytest.raises(SfssError, match=r"nowhere\.json.*No such file"):
        card_values(tmp_path / "nowhere.json")


def test_a_card_of_endless_nesting_is_refused(tmp_path: Path):
    (tmp_path / "card.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"cannot read card .* nested too deeply"):
        card_values(tmp_path / "card.json")
