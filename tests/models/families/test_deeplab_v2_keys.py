"""Tests of recognising DeepLabV2 checkpoints, against logits computed from the published definition."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from checkpoint_files import assert_close, random_images, refusal, write
from family_states import (
    State,
    batch_counters,
    deeplab_v2_head,
    deeplab_v2_logits,
    prefixed,
    resnet101,
    to_caffe,
    to_imagenet,
    upsample_corners,
    with_small_variances,
)
from torch import Tensor

from sfss_ray import load_model, load_source_model, save_model
from sfss_ray.data.class_sets import CITYSCAPES_19, SYNTHIA_16

SIZE = (39, 52)  # pooling at half of this size differs between rounding up and rounding down
VOC_21 = ["background", *[f"thing {i}" for i in range(20)]]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return random_images(SIZE)


@pytest.fixture(scope="module")
def body() -> State:
    return resnet101()


@torch.no_grad()
def check_caffe(model: Any, state: State, head_prefix: str, images: Tensor, branches: int = 4):
    """Check logits, card and report of a model with the `caffe` body."""
    prepared = to_caffe(images)
    logits = deeplab_v2_logits(state, prepared, head_prefix, caffe=True, branches=branches)
    assert_close(model(images), upsample_corners(logits, SIZE))
    assert model.card.channel_order == "bgr"
    assert model.card.value_range == 255
    assert model.card.align_corners
    assert model.load_report.missing == ()
    assert model.load_report.unexpected == ()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_deeplab_multi_of_adaptsegnet_advent_and_hcl(prefix, body, images, tmp_path):
    """DeeplabMulti has an auxiliary head on 1024 channels and the main one on 2048."""
    auxiliary = deeplab_v2_head("layer5.", 19, 1024, seed=2)
    state = body | auxiliary | deeplab_v2_head("layer6.", 19)
    model = load_source_model(write(tmp_path / "x.pth", prefixed(prefix, state)))
    check_caffe(model, state, "layer6.", images)
    assert model.classes is CITYSCAPES_19
    assert model.name == "deeplabv2_resnet101"
    assert len(model.load_report.unused) == 8
    assert all(key.startswith("layer5.") for key in model.load_report.unused)
    assert "AdaptSegNet" in model.load_report.family
    assert model(images).shape == (1, 19, *SIZE)


def test_start_weights_with_the_prefix_scale(body, images, tmp_path):
    state = body | deeplab_v2_head("layer5.", 21)
    content = prefixed("Scale.", state) | {"fc.weight": torch.zeros(9, 9)}
    model = load_source_model(write(tmp_path / "x.pth", content), classes=VOC_21)
    check_caffe(model, state, "layer5.", images)
    assert model.classes.classes == tuple(VOC_21)
    assert model.load_report.unused == ("fc.weight",)


def test_iapc_saves_a_single_head_in_a_state_dict(body, images, tmp_path):
    state = body | deeplab_v2_head("layer6.", 16)
    model = load_source_model(write(tmp_path / "x.pth", {"state_dict": state, "epoch": 4}))
    check_caffe(model, state, "layer6.", images)
    assert model.classes is SYNTHIA_16
    assert model.load_report.classes_from == "the number of outputs, 16"


def test_crots_saves_a_lightning_checkpoint_with_the_prefix_net(body, images, tmp_path):
    state = body | deeplab_v2_head("layer5.", 19)
    content = {"state_dict": prefixed("net.", state), "global_step": 9, "callbacks": {}}
    model = load_source_model(write(tmp_path / "x.ckpt", content))
    check_caffe(model, state, "layer5.", images)


def test_a_head_that_summed_two_of_its_four_convolutions(body, images, tmp_path):
    """AdaptSegNet's loop returns early, so the last two keep their start weights, N(0, 0.01)."""
    state = body | deeplab_v2_head("layer6.", 19)
    generator = torch.Generator().manual_seed(3)
    for i in (2, 3):
        key = f"layer6.conv2d_list.{i}.weight"
        state[key] = 0.01 * torch.randn(state[key].shape, generator=generator)
    model = load_source_model(write(tmp_path / "x.pth", state))
    check_caffe(model, state, "layer6.", images, branches=2)
    assert "summed two of four" in model.load_report.notes[0]


def test_an_untrained_head_sums_all_four(body, images, tmp_path):
    state = body | deeplab_v2_head("layer6.", 19)
    for key in [k for k in state if re.match(r"layer6.*weight", k)]:
        state[key] = 0.01 * torch.randn(state[key].shape)
    model = load_source_model(write(tmp_path / "x.pth", state))
    check_caffe(model, state, "layer6.", images)
    assert model.load_report.notes == ()


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module."])
def test_feature_extractor_and_classifier_of_fada_dtst_and_trsfuda(prefix, body, images, tmp_path):
    body = body | batch_counters(body)
    classifier = deeplab_v2_head("", 19)
    content = {
        "iteration": 20000,
        "feature_extractor": prefixed(f"{prefix}backbone.", body),
        "classifier": prefixed(prefix, classifier),
        "discriminator": {"D.0.weight": torch.zeros(3)},
        "optimizer_fea": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": []},
    }
    model = load_source_model(write(tmp_path / "model_iter020000.pth", content))
    logits = deeplab_v2_logits(body | classifier, to_imagenet(images), "", caffe=False)
    assert_close(model(images), upsample_corners(logits, SIZE))
    assert model.card.channel_order == "rgb"
    assert model.card.align_corners
    assert model.load_report.unused == ("discriminator.D.0.weight",)
    assert model.load_report.notes == ()
    assert len(model.load_report.matched) == len(body) + len(classifier)


@torch.no_grad()
@pytest.mark.parametrize(("lowest", "highest"), [(1e-4, 1e-2), (1e-9, 1e-5)])
def test_batch_norm_that_was_frozen_without_an_epsilon(lowest, highest, body, images, tmp_path):
    """The logits are those of DT-ST's and TRSFUDA's code, also after saving a model file."""
    body, classifier = with_small_variances(body, lowest, highest), deeplab_v2_head("", 19)
    content = {"feature_extractor": prefixed("backbone.", body), "classifier": classifier}
    model = load_source_model(write(tmp_path / "x.pth", content))
    state, prepared = body | classifier, to_imagenet(images)
    frozen = deeplab_v2_logits(state, prepared, "", caffe=False, epsilon=0.0)
    expected = upsample_corners(frozen, SIZE)
    ordinary = upsample_corners(deeplab_v2_logits(state, prepared, "", caffe=False), SIZE)
    difference = (ordinary - expected).abs().mean()
    assert difference > 0.01 * expected.abs().mean()  # the epsilon matters in this test
    saved = load_model(save_model(tmp_path / "student.pt", model))
    for logits in (model(images), saved(images)):
        assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
        assert (logits.argmax(1) == expected.argmax(1)).all()
    assert "frozen without an epsilon" in model.load_report.notes[0]


def test_channels_without_variance_keep_their_scales(body, tmp_path):
    body = body | {"bn1.running_var": torch.zeros(64)}
    classifier = deeplab_v2_head("", 19)
    content = {"feature_extractor": prefixed("backbone.", body), "classifier": classifier}
    model = load_source_model(write(tmp_path / "x.pth", content))
    assert model.network.state_dict()["body.backbone.bn1.weight"].equal(body["bn1.weight"])


@pytest.mark.parametrize("owner", ["AdaptSegNet's", "FADA's"])
def test_vgg_checkpoints_are_refused_by_name(owner, tmp_path):
    features = {
        "0.weight": torch.zeros(64, 3, 3, 3),
        "29.weight": torch.zeros(1024, 512, 3, 3),
        "31.bias": torch.zeros(1024),
    }
    classifier = deeplab_v2_head("", 19, 1024)
    content = prefixed("features.", features) | prefixed("classifier.", classifier)
    if owner == "FADA's":
        content = {
            "feature_extractor": prefixed("module.backbone.", features),
            "classifier": prefixed("module.", classifier),
        }
    message = refusal(write(tmp_path / "x.pth", content))
    assert f"{owner} VGG16 DeepLab is not supported: supported are" in message
    assert "ResNet-101" in message


def test_a_backbone_without_its_head_is_refused(body, tmp_path):
    path = write(tmp_path / "x.pth", body | {"fc.weight": torch.zeros(10, 2048)})
    assert "a ResNet backbone alone" in refusal(path)
    only_auxiliary = write(tmp_path / "y.pth", body | deeplab_v2_head("layer5.", 19, 1024))
    assert "layer6.conv2d_list is missing" in refusal(only_auxiliary)
