"""Tests of torchvision's networks after splitting off their classifiers."""

from __future__ import annotations

import pytest
import torch
from family_states import randomise_batch_norm, to_imagenet
from torch import nn
from torchvision.models import segmentation

from sfss_ray.models.architectures.torchvision_networks import deeplab_or_fcn, lraspp

SIZE = (32, 48)


@torch.no_grad()
@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "fcn_resnet50"])
def test_body_and_classifier_compute_torchvisions_logits(name):
    torch.manual_seed(0)
    reference = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=5)
    randomise_batch_norm(reference)
    network = deeplab_or_fcn(name)(5).eval()
    network.body.backbone.load_state_dict(reference.backbone.state_dict())
    *head, classifier = reference.classifier.children()
    network.body.head.load_state_dict(nn.Sequential(*head).state_dict())
    network.classifier.load_state_dict(classifier.state_dict())
    images = torch.rand(1, 3, *SIZE)
    expected = reference(to_imagenet(images))["out"]
    torch.testing.assert_close(network.logits(images), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_lraspp_merges_two_classifiers_into_one():
    torch.manual_seed(0)
    reference = segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5
    )
    randomise_batch_norm(reference)
    network = lraspp(5).eval()
    network.body.backbone.load_state_dict(reference.backbone.state_dict())
    network.body.cbr.load_state_dict(reference.classifier.cbr.state_dict())
    network.body.scale.load_state_dict(reference.classifier.scale.state_dict())
    high, low = reference.classifier.high_classifier, reference.classifier.low_classifier
    network.classifier.weight.copy_(torch.cat([high.weight, low.weight], 1))
    network.classifier.bias.copy_(high.bias + low.bias)
    assert network.feature_width == 168
    images = torch.rand(1, 3, *SIZE)
    expected = reference(to_imagenet(images))["out"]
    torch.testing.assert_close(network.logits(images), expected, rtol=1e-4, atol=1e-4)
