"""Tests of mmsegmentation's dilated ResNets and DeepLab heads, against the published definition."""

from __future__ import annotations

import mmseg_resnet_states as mm
import pytest
import torch
from checkpoint_files import random_images
from torch import nn

from sfss_ray import Card
from sfss_ray.models.architectures.catalogue import build_network
from sfss_ray.models.architectures.mmseg_deeplab import (
    BackboneOptions,
    DilatedResNet,
    mmseg_deeplab_builders,
)

SIZE = (33, 65)


@torch.no_grad()
@pytest.mark.parametrize("deep_stem", [False, True])
@pytest.mark.parametrize(
    "grid",
    [
        mm.Grid(),
        mm.Grid((1, 2, 2, 1), (1, 1, 1, 2), True, (1, 2, 4)),
        mm.Grid((1, 2, 2, 2), (1, 1, 1, 1), False),
        mm.Grid(contract=False),
    ],
)
def test_stages_are_those_of_the_published_definition(grid, deep_stem):
    state = mm.backbone(50, deep_stem)
    options = BackboneOptions(grid.strides, grid.dilations, grid.contract, grid.multi_grid)
    resnet = DilatedResNet(50, deep_stem, options).eval()
    resnet.load_state_dict(state, strict=False)
    images = random_images(SIZE) - 0.5
    expected_stages = mm.stages_of(state, images, grid)
    for stage, expected in zip(resnet(images), expected_stages, strict=True):
        torch.testing.assert_close(stage, expected, rtol=1e-3, atol=1e-3)


def test_dilations_of_blocks():
    assert BackboneOptions().block_dilations(3, 3) == [2, 4, 4]
    assert BackboneOptions().block_dilations(1, 4) == [1, 1, 1, 1]
    assert BackboneOptions(contract_dilation=False).block_dilations(3, 3) == [4, 4, 4]
    grid = BackboneOptions(multi_grid=(1, 2, 4))
    assert grid.block_dilations(3, 3) == [1, 2, 4]
    assert grid.block_dilations(2, 2) == [1, 2]
    with pytest.raises(ValueError, match="give four strides and four dilations"):
        BackboneOptions(strides=(1, 2))


@pytest.mark.parametrize("style", ["pytorch", "caffe"])
def test_the_style_decides_which_convolution_has_the_stride(style):
    block = DilatedResNet(50, False, BackboneOptions(style=style)).layer2[0]
    strides = {"conv1": block.conv1.stride, "conv2": block.conv2.stride}
    strided = "conv2" if style == "pytorch" else "conv1"
    assert strides[strided] == (2, 2)
    assert sum(stride == (2, 2) for stride in strides.values()) == 1
    assert block.downsample[0].stride == (2, 2)


@torch.no_grad()
@pytest.mark.parametrize("head", ["deeplabv3", "deeplabv3plus"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_heads_compute_the_published_logits(head, align_corners):
    state = mm.v3_head(5) if head == "deeplabv3" else mm.v3plus_head(5)
    network = build_network(f"{head}_mmseg_resnet50", 5).eval()
    network.use_card(Card(align_corners=align_corners))
    decode_head = network.body.decode_head
    layers = {key: v for key, v in state.items() if not key.startswith("conv_seg.")}
    assert not decode_head.load_state_dict(layers, strict=False).unexpected_keys
    weights = {key: state[f"conv_seg.{key}"] for key in ("weight", "bias")}
    network.classifier.load_state_dict(weights)
    generator = torch.Generator().manual_seed(0)
    shapes = [(256, 9, 90), (512, 5, 45), (1024, 5, 45), (2048, 5, 45)]
    stages = [torch.rand(1, *shape, generator=generator) for shape in shapes]
    expected = mm.v3_logits(state, stages, align_corners=align_corners)
    logits = network.classifier(decode_head(stages))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def test_the_separable_bottleneck_is_an_option_of_v3plus():
    network = build_network("deeplabv3plus_mmseg_resnet50", 5, {"separable_bottleneck": True})
    names = dict(network.body.decode_head.bottleneck.named_children())
    assert set(names) == {"depthwise_conv", "pointwise_conv"}


def test_builders_cover_heads_depths_and_stems():
    names = set(mmseg_deeplab_builders())
    assert len(names) == 12
    assert {"deeplabv2_mmseg_resnet50", "deeplabv3_mmseg_resnet101_v1c"} <= names
    network = build_network("deeplabv2_mmseg_resnet50", 5, {"head_dilations": [6, 12]})
    assert [layer.dilation for layer in network.classifier.conv2d_list] == [(6, 6), (12, 12)]
    assert isinstance(network.classifier.conv2d_list[0], nn.Conv2d)
