"""State dicts of mmsegmentation's DeepLabs on ResNets by their published definitions, and their logits.

Nothing here uses the package or torchvision: names, shapes and arithmetic are stated a second time, from

- mmseg/models/backbones/resnet.py and utils/res_layer.py: a stage's first block has the stride, and with
  contract_dilation half the stage's dilation; multi_grid gives the dilations of the last stage's blocks;
- decode_heads/aspp_head.py (ASPPHead): image_pool.1 (1x1), aspp_modules (1x1 for dilation 1, else 3x3),
  bottleneck (3x3 over all of them), conv_seg;
- decode_heads/sep_aspp_head.py (DepthwiseSeparableASPPHead, a subclass): aspp_modules of a dilation
  above 1 are depthwise_conv and pointwise_conv; the bottleneck is its base class's plain 3x3;
  c1_bottleneck (1x1 of the first stage), two separable convolutions in sep_bottleneck;
- DAFormer's dlv2_head.py (DLV2Head): only aspp_modules, without norm, with biases, summed. Its `dlv2red`
  has the dilations 6 and 12.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from family_states import DILATIONS as DILATIONS_V2
from family_states import WIDTHS, State, batch_norm, conv_weight
from torch import Tensor
from torch.nn import functional as F

DEPTHS = {50: {1: 3, 2: 4, 3: 6, 4: 3}, 101: {1: 3, 2: 4, 3: 23, 4: 3}}
DILATIONS = (1, 12, 24, 36)
STEM = ((0, 3, 32, 2), (3, 32, 32, 1), (6, 32, 64, 1))
"""(index, inputs, outputs, stride) of the convolutions in the deep stem."""


def backbone(depth: int, deep_stem: bool, seed: int = 0) -> State:
    """Return a ResNet under mmsegmentation's names, without the prefix `backbone.`."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    if deep_stem:
        for index, inputs, outputs, _ in STEM:
            state[f"stem.{index}.weight"] = conv_weight(generator, outputs, inputs, 3)
            state |= batch_norm(generator, f"stem.{index + 1}", outputs)
    else:
        state["conv1.weight"] = conv_weight(generator, 64, 3, 7)
        state |= batch_norm(generator, "bn1", 64)
    inputs = 64
    for stage, blocks in DEPTHS[depth].items():
        width = WIDTHS[stage]
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            shapes = ((width, inputs, 1), (width, width, 3), (4 * width, width, 1))
            for i, shape in enumerate(shapes, 1):
                state[f"{name}.conv{i}.weight"] = conv_weight(generator, *shape)
                gain = 0.3 if i == 3 else 1.0
                state |= batch_norm(generator, f"{name}.bn{i}", shape[0], gain)
            if block == 0:
                state[f"{name}.downsample.0.weight"] = conv_weight(generator, 4 * width, inputs, 1)
                state |= batch_norm(generator, f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    return state


def _conv_norm(
    generator: torch.Generator, name: str, outputs: int, inputs: int, kernel: int
) -> State:
    weight = conv_weight(generator, outputs, inputs, kernel)
    return {f"{name}.conv.weight": weight} | batch_norm(generator, f"{name}.bn", outputs)


def _separable(generator: torch.Generator, name: str, outputs: int, inputs: int) -> State:
    state = {f"{name}.depthwise_conv.conv.weight": conv_weight(generator, inputs, 1, 3)}
    state |= batch_norm(generator, f"{name}.depthwise_conv.bn", inputs)
    return state | _conv_norm(generator, f"{name}.pointwise_conv", outputs, inputs, 1)


def _conv_seg(generator: torch.Generator, num_classes: int) -> State:
    bias = torch.randn(num_classes, generator=generator)
    weight = conv_weight(generator, num_classes, 512, 1)
    return {"conv_seg.weight": weight, "conv_seg.bias": bias}


def v2_head(num_classes: int = 19, seed: int = 1, branches: int = 4) -> State:
    """Return DLV2Head."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for i in range(branches):
        state[f"aspp_modules.{i}.conv.weight"] = conv_weight(generator, num_classes, 2048, 3)
        state[f"aspp_modules.{i}.conv.bias"] = torch.randn(num_classes, generator=generator)
    return state


def v3_head(num_classes: int = 19, seed: int = 2) -> State:
    """Return ASPPHead."""
    generator = torch.Generator().manual_seed(seed)
    state = _conv_norm(generator, "image_pool.1", 512, 2048, 1)
    for i, dilation in enumerate(DILATIONS):
        kernel = 1 if dilation == 1 else 3
        state |= _conv_norm(generator, f"aspp_modules.{i}", 512, 2048, kernel)
    state |= _conv_norm(generator, "bottleneck", 512, 2560, 3)
    return state | _conv_seg(generator, num_classes)


def v3plus_head(num_classes: int = 19, seed: int = 3) -> State:
    """Return DepthwiseSeparableASPPHead."""
    generator = torch.Generator().manual_seed(seed)
    state = _conv_norm(generator, "image_pool.1", 512, 2048, 1)
    state |= _conv_norm(generator, "aspp_modules.0", 512, 2048, 1)
    for i in (1, 2, 3):
        state |= _separable(generator, f"aspp_modules.{i}", 512, 2048)
    state |= _conv_norm(generator, "bottleneck", 512, 2560, 3)
    state |= _conv_norm(generator, "c1_bottleneck", 48, 256, 1)
    state |= _separable(generator, "sep_bottleneck.0", 512, 560)
    state |= _separable(generator, "sep_bottleneck.1", 512, 512)
    return state | _conv_seg(generator, num_classes)


def _norm(state: State, x: Tensor, name: str) -> Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    scale = state[f"{name}.weight"] / torch.sqrt(var + 1e-5)
    return x * scale.view(-1, 1, 1) + (state[f"{name}.bias"] - mean * scale).view(-1, 1, 1)


@dataclass(frozen=True)
class Grid:
    """Strides and dilations of a backbone; the default is that of the d8 files."""

    strides: tuple[int, ...] = (1, 2, 1, 1)
    dilations: tuple[int, ...] = (1, 1, 2, 4)
    contract: bool = True
    multi_grid: tuple[int, ...] | None = None

    def dilation(self, stage: int, block: int) -> int:
        """Return the dilation of a block's 3x3 convolution."""
        if self.multi_grid is not None and stage == 4:
            return self.multi_grid[block]
        dilation = self.dilations[stage - 1]
        return dilation // 2 if self.contract and block == 0 and dilation > 1 else dilation


def stages_of(state: State, x: Tensor, grid: Grid = Grid()) -> list[Tensor]:
    """Return the four stages of prepared images, by default at stride 4, 8, 8, 8."""
    if "conv1.weight" in state:
        x = torch.relu(_norm(state, F.conv2d(x, state["conv1.weight"], None, 2, 3), "bn1"))
    else:
        for index, _, _, stride in STEM:
            x = F.conv2d(x, state[f"stem.{index}.weight"], None, stride, 1)
            x = torch.relu(_norm(state, x, f"stem.{index + 1}"))
    x = F.max_pool2d(x, 3, 2, 1)
    stages = []
    for stage in (1, 2, 3, 4):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            name = f"layer{stage}.{block}"
            stride = grid.strides[stage - 1] if block == 0 else 1
            dilation = grid.dilation(stage, block)
            y = F.conv2d(x, state[f"{name}.conv1.weight"])
            y = torch.relu(_norm(state, y, f"{name}.bn1"))
            y = F.conv2d(y, state[f"{name}.conv2.weight"], None, stride, dilation, dilation)
            y = torch.relu(_norm(state, y, f"{name}.bn2"))
            y = _norm(state, F.conv2d(y, state[f"{name}.conv3.weight"]), f"{name}.bn3")
            if block == 0:
                x = F.conv2d(x, state[f"{name}.downsample.0.weight"], None, stride)
                x = _norm(state, x, f"{name}.downsample.1")
            x, block = torch.relu(x + y), block + 1
        stages.append(x)
    return stages


def _conv_unit(head: State, x: Tensor, name: str, dilation: int = 1) -> Tensor:
    """Apply a convolution with norm and ReLU, or two of them if it is separable."""
    if f"{name}.conv.weight" in head:
        weight = head[f"{name}.conv.weight"]
        x = F.conv2d(x, weight, None, 1, dilation * (weight.shape[-1] // 2), dilation)
        return torch.relu(_norm(head, x, f"{name}.bn"))
    weight = head[f"{name}.depthwise_conv.conv.weight"]
    x = F.conv2d(x, weight, None, 1, dilation, dilation, len(weight))
    x = torch.relu(_norm(head, x, f"{name}.depthwise_conv.bn"))
    return _conv_unit(head, x, f"{name}.pointwise_conv")


def v2_logits(
    head: State, stages: list[Tensor], dilations: tuple[int, ...] = DILATIONS_V2
) -> Tensor:
    total = torch.zeros(())
    for i, dilation in enumerate(dilations):
        weight, bias = head[f"aspp_modules.{i}.conv.weight"], head[f"aspp_modules.{i}.conv.bias"]
        total = total + F.conv2d(stages[3], weight, bias, 1, dilation, dilation)
    return total


def v3_logits(
    head: State,
    stages: list[Tensor],
    dilations: tuple[int, ...] = DILATIONS,
    align_corners: bool = False,
) -> Tensor:
    """Return the logits of DeepLabV3, or of V3+ if the head has a `c1_bottleneck`."""
    x = stages[3]
    mean = _conv_unit(head, x.mean((2, 3), keepdim=True), "image_pool.1")
    branches = [mean.repeat(1, 1, *x.shape[2:])]
    branches += [_conv_unit(head, x, f"aspp_modules.{i}", d) for i, d in enumerate(dilations)]
    x = _conv_unit(head, torch.cat(branches, 1), "bottleneck")
    if "c1_bottleneck.conv.weight" in head:
        detail = _conv_unit(head, stages[0], "c1_bottleneck")
        x = F.interpolate(x, detail.shape[2:], mode="bilinear", align_corners=align_corners)
        x = torch.cat([x, detail], 1)
        x = _conv_unit(head, _conv_unit(head, x, "sep_bottleneck.0"), "sep_bottleneck.1")
    return F.conv2d(x, head["conv_seg.weight"], head["conv_seg.bias"])


def save_deeplab(path: Path, backbone: State, head: State, meta: Any = None) -> Path:
    """Save a checkpoint as mmsegmentation does, with `meta` beside the weights."""
    state = {f"backbone.{key}": tensor for key, tensor in backbone.items()}
    state |= {f"decode_head.{key}": tensor for key, tensor in head.items()}
    torch.save({"meta": meta, "state_dict": state}, path)
    return path


CONFIG = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
crop_size = (769, 769)
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    size=(769, 769))
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True),
    pretrained='open-mmlab://resnet50_v1c',
    backbone=dict(
        type='ResNetV1c',
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
        contract_dilation=True),
    decode_head=dict(
        type='DepthwiseSeparableASPPHead',
        in_channels=2048,
        in_index=3,
        channels=512,
        dilations=(1, 12, 24, 36),
        c1_in_channels=256,
        c1_channels=48,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(
            type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=None,
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
launcher = 'none'
"""
"""The configuration of DeepLabV3+ on ResNet-50 with output stride 8, as mmengine prints it."""


def edit_config(replacements: dict[str, str]) -> str:
    """Return CONFIG with some of its text replaced."""
    text = CONFIG
    for old, new in replacements.items():
        assert old in text, old
        text = text.replace(old, new)
    return text
