"""Tests of recognising torchvision's own segmentation models, against their logits."""

from __future__ import annotations

import pytest
import torch
from checkpoint_files import random_images, refusal, write
from family_states import randomise_batch_norm, to_imagenet
from torchvision.models import segmentation

from sfss_ray import load_source_model
from sfss_ray.data.class_sets import CAMVID_11
from sfss_ray.models.families.torchvision_keys import torchvision_model

SIZE = (37, 50)


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "deeplabv3_mobilenet_v3_large",
        "deeplabv3_resnet50",
        "deeplabv3_resnet101",
        "fcn_resnet50",
        "fcn_resnet101",
        "lraspp_mobilenet_v3_large",
    ],
)
def test_logits_are_those_of_torchvision(name, tmp_path):
    torch.manual_seed(0)
    auxiliary = {} if name.startswith("lraspp") else {"aux_loss": True}
    builder = getattr(segmentation, name)
    reference = builder(weights=None, weights_backbone=None, num_classes=11, **auxiliary)
    randomise_batch_norm(reference)
    path = write(tmp_path / "x.pth", {"model": reference.state_dict(), "epoch": 1})
    model = load_source_model(path)
    images = random_images(SIZE)
    expected = reference.eval()(to_imagenet(images))["out"]
    assert (model(images) - expected).abs().max() < 2e-4 * expected.abs().max()
    assert model.name == name
    assert model.classes is CAMVID_11
    assert model.load_report.unexpected == ()
    assert all(key.startswith("aux_classifier.") for key in model.load_report.unused)


def test_a_file_without_its_classifier_is_refused(tmp_path):
    network = segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=11)
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("classifier.4.")}
    message = refusal(write(tmp_path / "x.pth", state))
    assert "2 tensors missing, first 'classifier.weight'" in message


def test_other_files_with_a_backbone_are_not_torchvisions():
    conv3 = {"backbone.layer3.5.conv3.weight": torch.zeros(1)}
    assert torchvision_model(conv3, None) is None
    assert torchvision_model(conv3 | {"decode_head.x": torch.zeros(1)}, None) is None
    head = {"classifier.0.weight": torch.zeros(4, 4, 3, 3), "classifier.4.bias": torch.zeros(11)}
    file = torchvision_model(conv3 | head, None)
    assert file is not None
    assert (file.network, file.num_classes) == ("fcn_resnet50", 11)
    mobilenet = {"backbone.0.0.weight": torch.zeros(1)}
    assert torchvision_model(mobilenet | head, None) is None
