"""Tests of the interface of all networks: preprocessing, features, heads and upsampling."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from sfss_ray import Card
from sfss_ray.data.class_groups import ClassGroups
from sfss_ray.data.class_sets import class_set_of
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.segmenter import ResizingHead, Segmenter

CAFFE = Card((104.0, 117.0, 123.0), (1.0, 1.0, 1.0), "bgr", 255, True, ("road", "sky"))


def test_images_are_prepared_as_the_card_says():
    network = Segmenter(nn.Identity(), nn.Identity())
    assert network.card() == Card()
    images = torch.rand(2, 3, 4, 5)
    mean, std = torch.tensor(Card().mean), torch.tensor(Card().std)
    for channel in range(3):
        expected = (images[:, channel] - mean[channel]) / std[channel]
        assert torch.allclose(network.prepare(images)[:, channel], expected, atol=1e-6)
    network.use_card(CAFFE)
    prepared = network.prepare(images)
    for channel, (rgb_channel, mean_255) in enumerate([(2, 104.0), (1, 117.0), (0, 123.0)]):
        expected = images[:, rgb_channel] * 255 - mean_255
        assert torch.allclose(prepared[:, channel], expected, atol=1e-4)
    assert network.card(("road", "sky")) == CAFFE
    assert copy.deepcopy(network).prepare(images).equal(prepared)


def test_the_card_may_be_given_to_the_constructor():
    network = Segmenter(nn.Identity(), nn.Identity(), CAFFE)
    assert network.card(CAFFE.classes) == CAFFE
    assert network.card().classes == ()
    assert network.mean.flatten().tolist() == [104.0, 117.0, 123.0]


@torch.no_grad()
def test_images_are_normalised_inside_the_network():
    network = build_network("compact", 2)
    network.body = nn.Identity()
    grey = network.mean.expand(1, 3, 4, 4)
    network.classifier = nn.Identity()
    assert network(grey).logits.abs().max() == 0
    assert torch.allclose(network(grey + network.std).logits, torch.ones(1, 3, 4, 4))


def test_logits_are_upsampled_in_float32():
    network = build_network("compact", 2)
    coarse = torch.tensor([[[[0.0, 1.0]]]], dtype=torch.bfloat16)
    fine = network.upsample(coarse, (1, 4))
    assert fine.dtype == torch.float32
    assert fine.flatten().tolist() == [0.0, 0.25, 0.75, 1.0]


def test_upsampling_follows_the_corner_rule_of_the_card():
    network = Segmenter(nn.Identity(), nn.Identity()).use_card(CAFFE)
    row = torch.tensor([[[[0.0, 1.0]]]])
    assert network.upsample(row, (1, 3)).flatten().tolist() == [0.0, 0.5, 1.0]
    network.use_card(Card())
    assert network.upsample(row, (1, 4)).flatten().tolist() == [0.0, 0.25, 0.75, 1.0]


def test_decode_heads_that_resize_adopt_the_corner_rule():
    body = nn.Sequential(nn.Conv2d(3, 3, 1), ResizingHead())
    network = Segmenter(body, nn.Identity())
    assert body[1].align_corners is False
    network.use_card(CAFFE)
    assert body[1].align_corners is True


@torch.no_grad()
def test_logits_have_the_size_of_the_images_or_the_size_asked_for():
    network = build_network("compact", 2).eval()
    images = torch.rand(1, 3, 32, 48)
    assert network.logits(images).shape == (1, 2, 32, 48)
    assert network.logits(images, (8, 8)).shape == (1, 2, 8, 8)


class Joined(nn.Module):
    """Takes even sides only, and returns the sum of all pixels that a cell of 2x2 pixels sees."""

    def forward(self, images):
        assert all(side % 2 == 0 for side in images.shape[-2:])
        return images.unfold(2, 2, 2).unfold(3, 2, 2).sum((-2, -1))


@torch.no_grad()
def test_images_are_padded_to_the_multiple_and_logits_cropped():
    network = Segmenter(Joined(), nn.Identity(), Card((0.0,) * 3, (1.0,) * 3))
    network.size_multiple = 2
    row = torch.tensor([1.0, 2.0, 3.0]).expand(1, 3, 5, 3)
    assert network.pad(row).shape == (1, 3, 6, 4)
    assert network.pad(row)[0, 0, 5].tolist() == [1.0, 2.0, 3.0, 3.0]
    # Cells of 6 and 12, upsampled to four pixels of which three are kept.
    assert network.logits(row)[0, 0, 0].tolist() == [6.0, 7.5, 10.5]
    assert network.logits(row).shape == (1, 3, 5, 3)
    assert network.logits(row, (10, 6)).shape == (1, 3, 10, 6)
    even = row[:, :, :4, :2]
    assert network.pad(even).equal(even)
    assert network.logits(even).unique().tolist() == [6.0]


def test_without_a_multiple_images_are_not_padded():
    images = torch.rand(1, 3, 5, 7)
    assert Segmenter(nn.Identity(), nn.Identity()).pad(images) is images


def test_heads_and_feature_width():
    body = nn.Module()
    body.decode_head = nn.Conv2d(3, 6, 1)
    classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(6, 2, 1))
    network = Segmenter(body, classifier)
    assert network.feature_width == 6
    assert network.heads == [classifier, body.decode_head]
    assert Segmenter(nn.Identity(), classifier).heads == [classifier]


OUTPUTS = class_set_of(["road", "wall", "building", "background", "sky"])
GROUPS = ClassGroups(
    "mine",
    (("building", ("building", "wall")), ("sky", ("sky",)), ("road", ("road",))),
    ("background",),
)


def grouped_network() -> Segmenter:
    """Features and logits are the images themselves, at half their size."""
    torch.manual_seed(0)
    network = Segmenter(nn.AvgPool2d(2), nn.Conv2d(3, 5, 1)).use_groups(GROUPS, OUTPUTS)
    with torch.no_grad():
        network.classifier.weight *= 4
    return network


def slow_group_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Sum the members' probabilities pixel by pixel, and divide by the sum of the kept ones."""
    members = [[1, 2], [4], [0]]
    batch, _, height, width = logits.shape
    result = torch.zeros(batch, len(members), height, width, dtype=torch.float64)
    for image in range(batch):
        for row in range(height):
            for column in range(width):
                values = logits[image, :, row, column].double().tolist()
                total = sum(math.exp(value) for value in values)
                probabilities = [math.exp(value) / total for value in values]
                kept = sum(probabilities[i] for group in members for i in group)
                for index, group in enumerate(members):
                    summed = sum(probabilities[i] for i in group)
                    result[image, index, row, column] = summed / kept
    return result.float()


@torch.no_grad()
def test_probabilities_of_a_group_add_up_at_every_size():
    network, images = grouped_network(), torch.rand(2, 3, 6, 8)
    assert network.classes == class_set_of(["building", "sky", "road"], "mine")
    features, logits = network(images)
    raw = network.classifier(features)
    assert logits.shape == (2, 3, 3, 4)
    torch.testing.assert_close(logits.softmax(1), slow_group_probabilities(raw))
    # At full size the outputs are upsampled first: upsampled groups would not add up.
    for size in ((6, 8), (5, 9)):
        full = network.upsample(raw, size)
        probabilities = network.logits(images, size).softmax(1)
        torch.testing.assert_close(probabilities, slow_group_probabilities(full))
        assert not torch.allclose(network.upsample(logits, size).softmax(1), probabilities)


@torch.no_grad()
def test_logits_far_apart_neither_overflow_nor_vanish():
    network = grouped_network()
    logits = torch.tensor([-300.0, 300.0, 300.0, 0.0, 100.0]).view(1, 5, 1, 1)
    expected = [300 + math.log(2), 100.0, -300.0]
    assert network.group(logits).flatten().tolist() == pytest.approx(expected)
    assert network.group(logits.bfloat16()).dtype == torch.float32


def test_all_members_learn_and_dropped_outputs_do_not():
    network = grouped_network()
    network.logits(torch.rand(1, 3, 6, 8))[:, 0].sum().backward()
    assert network.classifier.bias.grad is not None
    assert (network.classifier.bias.grad != 0).tolist() == [False, True, True, False, False]


@torch.no_grad()
def test_groups_are_copied_with_the_network_and_can_be_removed():
    network, images = grouped_network(), torch.rand(1, 3, 6, 8)
    assert torch.equal(copy.deepcopy(network).logits(images), network.logits(images))
    outputs = network.output_logits(images)
    network.remove_groups()
    assert network.classes == OUTPUTS
    assert torch.equal(network.logits(images), outputs)
    assert network.remove_groups().classes == OUTPUTS
