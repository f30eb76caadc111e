"""Likely cards: which ones are compared, and how they are described."""

from __future__ import annotations

import itertools
import json

import torch

from sfss_ray.inspection.likely_cards import (
    cards_to_compare,
    changed_entries,
    describe_preparation,
    prepares_alike,
)
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.card import IMAGENET_MEAN, IMAGENET_STD, Card

IMAGENET = Card()
CAFFE = Card(
    mean=(104.00698793, 116.66876762, 122.67891434),
    std=(1, 1, 1),
    channel_order="bgr",
    value_range=255,
)
MMSEG = Card(
    mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), value_range=255
)  # ImageNet's, in units of 255


def prepared(card: Card, images: torch.Tensor) -> torch.Tensor:
    return build_network("compact", 2, {"width": 1}).use_card(card).prepare(images)


def test_every_two_cards_prepare_an_image_differently():
    images = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    inputs = [prepared(card, images) for card in cards_to_compare(IMAGENET, CAFFE)]
    assert len(inputs) > 10
    for first, second in itertools.combinations(inputs, 2):
        assert (first - second).abs().max() > 1e-3


def test_the_card_in_use_is_first_and_common_mistakes_follow():
    current = Card(align_corners=True, classes=("road", "sky"))
    cards = cards_to_compare(current, CAFFE)
    assert cards[0] == current
    assert all((card.align_corners, card.classes) == (True, ("road", "sky")) for card in cards)
    for expected in (
        CAFFE,
        Card(channel_order="bgr"),
        Card(channel_order="bgr", mean=IMAGENET_MEAN[::-1], std=IMAGENET_STD[::-1]),
        Card(value_range=255),
        Card(mean=(0, 0, 0), std=(1, 1, 1)),
        Card(mean=(0, 0, 0), std=(1, 1, 1), value_range=255, channel_order="bgr"),
        Card(mean=CAFFE.mean, std=(255, 255, 255), channel_order="bgr", value_range=255),
    ):
        assert sum(prepares_alike(card, expected) for card in cards) == 1


def test_units_make_no_difference():
    assert prepares_alike(IMAGENET, MMSEG)
    assert not prepares_alike(IMAGENET, Card(channel_order="bgr"))
    assert len(cards_to_compare(IMAGENET, MMSEG)) >= len(cards_to_compare(IMAGENET, IMAGENET))
    assert len(cards_to_compare(IMAGENET, None)) == len(cards_to_compare(IMAGENET, IMAGENET))


def test_cards_are_described_in_words():
    assert describe_preparation(IMAGENET) == "RGB, 0 to 1, ImageNet's mean and std"
    assert describe_preparation(CAFFE) == "BGR, 0 to 255, Caffe's mean"
    own = Card(mean=(0.5, 0.25, 0), std=(1, 2, 3))
    assert describe_preparation(own) == "RGB, 0 to 1, mean [0.5, 0.25, 0], std [1, 2, 3]"


def test_changed_entries_are_those_of_a_card_file():
    entries = json.loads(changed_entries(IMAGENET, CAFFE))
    assert IMAGENET.replaced(entries) == CAFFE
    assert json.loads(changed_entries(IMAGENET, Card(channel_order="bgr"))) == {
        "channel_order": "bgr"
    }
