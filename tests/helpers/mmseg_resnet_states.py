"""State dicts of mmsegmentation's DeepLabs on ResNets by their published definitions, and their logits.

Nothing here uses the package or torchvision: names, shapes and arithmetic are stated a second time, from

- mmseg/models/backbones/resnet.py and utils/res_layer.py: a stage's first block has the stride, and with
  contract_dilation half the stage's dilation; multi_grid gives the dilations of the last stage's blocks;
- decode_heads/aspp_head.py (ASPPHead): image_pool.1 (1x1), aspp_modules (1x1 for dilation 1, else 3x3),
  bottleneck (3x3 over all of them), conv_seg;
- decode_heads/sep_aspp_head.py (DepthwiseSeparableASPPHead, a subclass): aspp_modules of a dilation
  above 1 are depthwise_conv and pointwise_conv; the bottleneck is its base class's plain 3x3;
  c1_bottleneck (1x1 of the first stage), two separable convolutions in sep_bottleneck;
- DAFormer's dlv2_head.py (DLV2Head): aspp_modules alone, without norm, with biases, summed. Its
  `dlv2red` has the dilations 6 and 12.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from family_states import DILATIONS, WIDTHS, State, convolution, normalisation
from torch import Tensor
from torch.nn import functional as F

DEPTHS = {50: {1: 3, 2: 4, 3: 6, 4: 3}, 101: {1: 3, 2: 4, 3: 23, 4: 3}}
RATES = (1, 12, 24, 36)
STEM = ((0, 3, 32, 2), (3, 32, 32, 1), (6, 32, 64, 1))


def backbone(depth: int, deep_stem: bool, seed: int = 0) -> State:
    """Under mmsegmentation's names, without the prefix."""
    make = torch.Generator().manual_seed(seed)
    state: State = {}
    if deep_stem:
        for place, inputs, outputs, _ in STEM:
            state[f"stem.{place}.weight"] = convolution(make, outputs, inputs, 3)
            state |= normalisation(make, f"stem.{place + 1}", outputs)
    else:
        state["conv1.weight"] = convolution(make, 64, 3, 7)
        state |= normalisation(make, "bn1", 64)
    inputs = 64
    for stage, blocks in DEPTHS[depth].items():
        width = WIDTHS[stage]
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            shapes = ((width, inputs, 1), (width, width, 3), (4 * width, width, 1))
            for i, shape in enumerate(shapes, 1):
                state[f"{name}.conv{i}.weight"] = convolution(make, *shape)
                gain = 0.3 if i == 3 else 1.0
                state |= normalisation(make, f"{name}.bn{i}", shape[0], gain)
            if block == 0:
                state[f"{name}.downsample.0.weight"] = convolution(make, 4 * width, inputs, 1)
                state |= normalisation(make, f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    return state


def _conv_norm(make: torch.Generator, name: str, outputs: int, inputs: int, kernel: int) -> State:
    weight = convolution(make, outputs, inputs, kernel)
    return {f"{name}.conv.weight": weight} | normalisation(make, f"{name}.bn", outputs)


def _separable(make: torch.Generator, name: str, outputs: int, inputs: int) -> State:
    state = {f"{name}.depthwise_conv.conv.weight": convolution(make, inputs, 1, 3)}
    state |= normalisation(make, f"{name}.depthwise_conv.bn", inputs)
    return state | _conv_norm(make, f"{name}.pointwise_conv", outputs, inputs, 1)


def _last(make: torch.Generator, num_classes: int) -> State:
    bias = torch.randn(num_classes, generator=make)
    return {"conv_seg.weight": convolution(make, num_classes, 512, 1), "conv_seg.bias": bias}


def v2_head(num_classes: int = 19, seed: int = 1, branches: int = 4) -> State:
    """DLV2Head."""
    make, state = torch.Generator().manual_seed(seed), {}
    for i in range(branches):
        state[f"aspp_modules.{i}.conv.weight"] = convolution(make, num_classes, 2048, 3)
        state[f"aspp_modules.{i}.conv.bias"] = torch.randn(num_classes, generator=make)
    return state


def v3_head(num_classes: int = 19, seed: int = 2) -> State:
    """ASPPHead."""
    make = torch.Generator().manual_seed(seed)
    state = _conv_norm(make, "image_pool.1", 512, 2048, 1)
    for i, rate in enumerate(RATES):
        state |= _conv_norm(make, f"aspp_modules.{i}", 512, 2048, 1 if rate == 1 else 3)
    state |= _conv_norm(make, "bottleneck", 512, 2560, 3)
    return state | _last(make, num_classes)


def v3plus_head(num_classes: int = 19, seed: int = 3) -> State:
    """DepthwiseSeparableASPPHead."""
    make = torch.Generator().manual_seed(seed)
    state = _conv_norm(make, "image_pool.1", 512, 2048, 1)
    state |= _conv_norm(make, "aspp_modules.0", 512, 2048, 1)
    for i in (1, 2, 3):
        state |= _separable(make, f"aspp_modules.{i}", 512, 2048)
    state |= _conv_norm(make, "bottleneck", 512, 2560, 3)
    state |= _conv_norm(make, "c1_bottleneck", 48, 256, 1)
    state |= _separable(make, "sep_bottleneck.0", 512, 560)
    state |= _separable(make, "sep_bottleneck.1", 512, 512)
    return state | _last(make, num_classes)


def _norm(state: State, x: Tensor, name: str) -> Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    scale = state[f"{name}.weight"] / torch.sqrt(var + 1e-5)
    return x * scale.view(-1, 1, 1) + (state[f"{name}.bias"] - mean * scale).view(-1, 1, 1)


@dataclass(frozen=True)
class Grid:
    """The backbone's configuration; the default is that of the d8 files."""

    strides: tuple[int, ...] = (1, 2, 1, 1)
    dilations: tuple[int, ...] = (1, 1, 2, 4)
    contract: bool = True
    multi_grid: tuple[int, ...] | None = None

    def rate(self, stage: int, block: int) -> int:
        """Dilation of a block's 3x3 convolution."""
        if self.multi_grid is not None and stage == 4:
            return self.multi_grid[block]
        rate = self.dilations[stage - 1]
        return rate // 2 if self.contract and block == 0 and rate > 1 else rate


def stages_of(state: State, x: Tensor, grid: Grid = Grid()) -> list[Tensor]:
    """Prepared images -> the four stages, by default at stride 4, 8, 8, 8."""
    if "conv1.weight" in state:
        x = torch.relu(_norm(state, F.conv2d(x, state["conv1.weight"], None, 2, 3), "bn1"))
    else:
        for place, _, _, stride in STEM:
            x = F.conv2d(x, state[f"stem.{place}.weight"], None, stride, 1)
            x = torch.relu(_norm(state, x, f"stem.{place + 1}"))
    x = F.max_pool2d(x, 3, 2, 1)
    stages = []
    for stage in (1, 2, 3, 4):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            name = f"layer{stage}.{block}"
            step, rate = grid.strides[stage - 1] if block == 0 else 1, grid.rate(stage, block)
            y = F.conv2d(x, state[f"{name}.conv1.weight"])
            y = torch.relu(_norm(state, y, f"{name}.bn1"))
            y = F.conv2d(y, state[f"{name}.conv2.weight"], None, step, rate, rate)
            y = torch.relu(_norm(state, y, f"{name}.bn2"))
            y = _norm(state, F.conv2d(y, state[f"{name}.conv3.weight"]), f"{name}.bn3")
            if block == 0:
                x = F.conv2d(x, state[f"{name}.downsample.0.weight"], None, step)
                x = _norm(state, x, f"{name}.downsample.1")
            x, block = torch.relu(x + y), block + 1
        stages.append(x)
    return stages


def _context_unit(head: State, x: Tensor, name: str, rate: int = 1) -> Tensor:
    """A convolution with norm and ReLU, or two where it is separable."""
    if f"{name}.conv.weight" in head:
        weight = head[f"{name}.conv.weight"]
        x = F.conv2d(x, weight, None, 1, rate * (weight.shape[-1] // 2), rate)
        return torch.relu(_norm(head, x, f"{name}.bn"))
    weight = head[f"{name}.depthwise_conv.conv.weight"]
    x = F.conv2d(x, weight, None, 1, rate, rate, len(weight))
    x = torch.relu(_norm(head, x, f"{name}.depthwise_conv.bn"))
    return _context_unit(head, x, f"{name}.pointwise_conv")


def v2_logits(head: State, stages: list[Tensor], rates: tuple[int, ...] = DILATIONS) -> Tensor:
    total = torch.zeros(())
    for i, rate in enumerate(rates):
        weight, bias = head[f"aspp_modules.{i}.conv.weight"], head[f"aspp_modules.{i}.conv.bias"]
        total = total + F.conv2d(stages[3], weight, bias, 1, rate, rate)
    return total


def v3_logits(
    head: State, stages: list[Tensor], rates: tuple[int, ...] = RATES, align_corners: bool = False
) -> Tensor:
    """With `c1_bottleneck` in the head: DeepLabV3+."""
    x = stages[3]
    mean = _context_unit(head, x.mean((2, 3), keepdim=True), "image_pool.1")
    parts = [mean.repeat(1, 1, *x.shape[2:])]
    parts += [_context_unit(head, x, f"aspp_modules.{i}", rate) for i, rate in enumerate(rates)]
    x = _context_unit(head, torch.cat(parts, 1), "bottleneck")
    if "c1_bottleneck.conv.weight" in head:
        detail = _context_unit(head, stages[0], "c1_bottleneck")
        x = F.interpolate(x, detail.shape[2:], mode="bilinear", align_corners=align_corners)
        x = torch.cat([x, detail], 1)
        x = _context_unit(head, _context_unit(head, x, "sep_bottleneck.0"), "sep_bottleneck.1")
    return F.conv2d(x, head["conv_seg.weight"], head["conv_seg.bias"])
