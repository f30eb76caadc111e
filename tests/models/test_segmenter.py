"""Tests of the interface of all networks: preprocessing, features, heads and upsampling."""

from __future__ import annotations

import copy

import torch
from torch import nn

from sfss_ray import Card
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
