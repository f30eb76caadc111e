"""Tests of the layers of decode heads on Mix Transformers."""

from __future__ import annotations

import mit_states as mit
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sfss_ray.models.architectures.mit_heads import (
    ConvNorm,
    MMSegHead,
    SeparableConv,
    StageEmbedding,
    concat_stages,
)


def stages(widths=(32, 64, 160, 256), size=(16, 24)) -> list[torch.Tensor]:
    """Random stages at strides 4, 8, 16 and 32."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, width, size[0] >> i, size[1] >> i, generator=generator)
        for i, width in enumerate(widths)
    ]


@torch.no_grad()
@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 1), (3, 6)])
def test_a_convolution_with_norm_keeps_the_grid(kernel, dilation):
    layer = ConvNorm(4, 6, kernel, dilation).eval()
    state = mit.RandomWeights().conv_norm("x", 6, 4, kernel, kernel)
    layer.load_state_dict({key.removeprefix("x."): v for key, v in state.items()}, strict=False)
    x = torch.randn(2, 4, 9, 11)
    output = layer(x)
    assert output.shape == (2, 6, 9, 11)
    torch.testing.assert_close(output, mit.conv_norm(state, x, "x", dilation))


@torch.no_grad()
def test_a_separable_convolution_mixes_channels_only_in_its_second_layer():
    layer = SeparableConv(4, 6, dilation=2).eval()
    assert layer.depthwise_conv.conv.weight.shape == (4, 1, 3, 3)
    assert layer.pointwise_conv.conv.weight.shape == (6, 4, 1, 1)
    x = torch.randn(1, 4, 9, 9)
    changed = x.clone()
    changed[:, 0] += 1
    difference = layer.depthwise_conv(x) != layer.depthwise_conv(changed)
    assert not difference[:, 1:].any()


@torch.no_grad()
def test_a_stage_embedding_is_a_1x1_convolution():
    layer = StageEmbedding(4, 6)
    x = torch.randn(2, 4, 5, 7)
    expected = F.conv2d(x, layer.proj.weight[:, :, None, None], layer.proj.bias)
    torch.testing.assert_close(layer(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("align_corners", [False, True])
def test_stages_are_concatenated_on_the_grid_of_the_first(align_corners):
    maps = stages((1, 2, 3, 4))
    joined = concat_stages(maps, align_corners)
    assert joined.shape == (2, 10, 16, 24)
    assert torch.equal(joined[:, :1], maps[0])
    resized = F.interpolate(maps[3], (16, 24), mode="bilinear", align_corners=align_corners)
    assert torch.equal(joined[:, 6:], resized)


@torch.no_grad()
@pytest.mark.parametrize("align_corners", [False, True])
def test_mmsegs_head_computes_the_published_function(align_corners):
    state = mit.mmseg_head()
    head = MMSegHead(mit.B0["widths"], mit.EMBED).eval()
    head.align_corners = align_corners
    layers = {key: tensor for key, tensor in state.items() if not key.startswith("conv_seg")}
    missing = head.load_state_dict(layers, strict=False)
    assert not missing.unexpected_keys
    classifier = nn.Conv2d(mit.EMBED, mit.CLASSES, 1)
    names = ("weight", "bias")
    classifier.load_state_dict({name: state[f"conv_seg.{name}"] for name in names})
    expected = mit.mmseg_logits(state, stages(), align_corners)
    torch.testing.assert_close(classifier(head(stages())), expected, rtol=1e-4, atol=1e-4)
