"""Tests of the two variants of DeepLabV2, against a forward pass written from the paper."""

from __future__ import annotations

import pytest
import torch
from checkpoint_files import assert_close, random_images
from family_states import (
    State,
    deeplab_v2_head,
    deeplab_v2_logits,
    prefixed,
    resnet101,
    to_caffe,
    to_imagenet,
)
from torch.nn import functional as F

from sfss_ray.models.architectures.deeplab_v2 import (
    CAFFE_CARD,
    AtrousClassifier,
    deeplabv2,
    deeplabv2_torchvision,
)

SIZE = (39, 52)  # pooling at half of this size differs between rounding up and rounding down


@pytest.fixture(scope="module")
def body() -> State:
    return resnet101()


@torch.no_grad()
@pytest.mark.parametrize("variant", ["caffe", "torchvision"])
def test_logits_are_those_of_the_paper(variant, body):
    caffe, head = variant == "caffe", deeplab_v2_head("", 5)
    network = deeplabv2(5) if caffe else deeplabv2_torchvision(5)
    prefix = "body." if caffe else "body.backbone."
    state = prefixed(prefix, body) | prefixed("classifier.", head)
    network.load_state_dict(state, strict=False)
    images = random_images(SIZE)
    prepared = to_caffe(images) if caffe else to_imagenet(images)
    expected = deeplab_v2_logits(body | head, prepared, "", caffe=caffe)
    logits = network.eval()(images).logits
    assert_close(logits, expected)
    assert logits.shape[2:] == ((6, 7) if caffe else (5, 7))


@torch.no_grad()
def test_weights_of_one_variant_give_other_logits_in_the_other(body):
    head, images = deeplab_v2_head("", 5), random_images((37, 50))
    caffe, torchvision = (
        deeplab_v2_logits(body | head, to_imagenet(images), "", caffe=caffe)
        for caffe in (True, False)
    )
    assert caffe.shape == torchvision.shape
    assert (caffe - torchvision).abs().max() > 0.1 * caffe.abs().max()


def test_the_caffe_variant_takes_bgr_pixels():
    network = deeplabv2(5)
    assert network.card() == CAFFE_CARD
    assert (CAFFE_CARD.channel_order, CAFFE_CARD.value_range) == ("bgr", 255)
    images = random_images((3, 4))
    torch.testing.assert_close(network.prepare(images), to_caffe(images))


@torch.no_grad()
def test_the_classifier_sums_convolutions_of_chosen_dilations():
    classifier = AtrousClassifier(3, inputs=4, dilations=(1, 2))
    features = torch.randn(1, 4, 9, 9)
    expected = sum(
        F.conv2d(features, layer.weight, layer.bias, padding=dilation, dilation=dilation)
        for layer, dilation in zip(classifier.conv2d_list, (1, 2), strict=True)
    )
    torch.testing.assert_close(classifier(features), expected)
    assert [layer.dilation[0] for layer in AtrousClassifier(3).conv2d_list] == [6, 12, 18, 24]
