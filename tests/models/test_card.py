"""The card: its ranges, its plain form, and what the segmenter does with it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from sfss_ray import Card
from sfss_ray.data.class_sets import CAMVID_11
from sfss_ray.errors import SfssError
from sfss_ray.models.card import IMAGENET_MEAN, card_values
from sfss_ray.models.segmenter import Segmenter

CAFFE = Card((104.0, 117.0, 123.0), (1.0, 1.0, 1.0), "bgr", 255, True, ("road", "sky"))


def test_a_card_comes_back_from_plain_json():
    assert Card.from_dict(json.loads(json.dumps(CAFFE.to_dict()))) == CAFFE
    assert Card.from_dict({}) == Card()
    assert Card().mean == IMAGENET_MEAN


def test_classes_may_be_named_by_their_set():
    assert Card.from_dict({"classes": "camvid-11"}).classes == CAMVID_11.classes
    assert Card.from_dict({"classes": ["a", "b"]}).classes == ("a", "b")
    assert card_values({"classes": "road, sky"}) == {"classes": ["road", "sky"]}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mean": [1, 2]}, "mean is [1, 2]: allowed are three numbers"),
        ({"mean": "abc"}, "mean is 'abc'"),
        ({"std": [1, 0, 1]}, "std is (1.0, 0.0, 1.0): allowed are three numbers above 0"),
        ({"std": [1, float("nan"), 1]}, "std is"),
        ({"channel_order": "BGR"}, "channel_order is 'BGR': allowed is rgb or bgr"),
        ({"value_range": 256}, "value_range is 256: allowed is 1 or 255"),
        ({"align_corners": 1}, "align_corners is 1: allowed is true or false"),
        ({"classes": 19}, "classes are 19"),
        ({"classes": "ade20k"}, "unknown class set 'ade20k'"),
        ({"means": [1, 2, 3]}, "unknown entry 'means': known are mean, std, channel_order"),
    ],
)
def test_what_no_card_may_hold_is_refused(values, said):
    with pytest.raises(SfssError) as refused:
        card_values(values)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_cards_are_read_from_json_files(tmp_path: Path):
    path = tmp_path / "card.json"
    path.write_text('{"value_range": 255}')
    assert card_values(path) == card_values(str(path)) == {"value_range": 255}
    assert card_values(None) == {}
    assert "classes" not in card_values(Card())
    assert Card.from_dict(card_values(CAFFE)) == CAFFE
    for text in ("no json", "[1]"):
        path.write_text(text)
        with pytest.raises(SfssError, match=r"card.json"):
            card_values(path)
    with pytest.raises(SfssError, match=r"nowhere\.json.*No such file"):
        card_values(tmp_path / "nowhere.json")


def test_the_segmenter_prepares_images_as_the_card_says():
    network = Segmenter(nn.Identity(), nn.Identity())
    assert network.card() == Card()
    images = torch.rand(2, 3, 4, 5)
    mean, std = torch.tensor(Card().mean), torch.tensor(Card().std)
    for channel in range(3):
        expected = (images[:, channel] - mean[channel]) / std[channel]
        assert torch.allclose(network.prepare(images)[:, channel], expected, atol=1e-6)
    network.use_card(CAFFE)
    prepared = network.prepare(images)
    for channel, (source, mean_of) in enumerate([(2, 104.0), (1, 117.0), (0, 123.0)]):
        assert torch.allclose(prepared[:, channel], images[:, source] * 255 - mean_of, atol=1e-4)
    assert network.card(("road", "sky")) == CAFFE
    assert copy.deepcopy(network).prepare(images).equal(prepared)


def test_the_corner_rule_is_the_cards():
    network = Segmenter(nn.Identity(), nn.Identity()).use_card(CAFFE)
    line = torch.tensor([[[[0.0, 1.0]]]])
    assert network.upsample(line, (1, 3)).flatten().tolist() == [0.0, 0.5, 1.0]
    network.use_card(Card())
    assert network.upsample(line, (1, 4)).flatten().tolist() == [0.0, 0.25, 0.75, 1.0]
