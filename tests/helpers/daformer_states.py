"""Decode heads of DAFormer's code in all kinds of its configurations: weights and logits.

Names as in its daformer_head.py, isa_head.py, segformer_head.py, without `decode_head.`; the arithmetic
is stated a second time.
"""

from __future__ import annotations

import math

import torch
from mit_states import (
    B0,
    CLASSES,
    EMBED,
    Numbers,
    State,
    conv_norm,
    enlarged,
    joined_stages,
    per_cell,
)
from torch import Tensor
from torch.nn import functional as F

RATES = (1, 6, 12, 18)
PATCH = 8


def _embed_layers(make: Numbers, start: str = "embed_layers") -> State:
    state: State = {}
    for i, width in enumerate(B0["widths"]):
        state |= make.layer(f"{start}.{i}.proj", EMBED, width)
    return state


def _context(make: Numbers, name: str, inputs: int, sep: bool, pool: bool) -> State:
    """ASPPWrapper."""
    state = make.conv_norm(f"{name}aspp_modules.0", EMBED, inputs, 1, 1)
    if pool:
        state |= make.conv_norm(f"{name}image_pool.1", EMBED, inputs, 1, 1)
    for i in range(1, len(RATES)):
        branch = f"{name}aspp_modules.{i}"
        if sep:
            state |= make.conv_norm(f"{branch}.depthwise_conv", inputs, 1, 3, 3)
            state |= make.conv_norm(f"{branch}.pointwise_conv", EMBED, inputs, 1, 1)
        else:
            state |= make.conv_norm(branch, EMBED, inputs, 3, 3)
    return state | make.conv_norm(
        f"{name}bottleneck", EMBED, (len(RATES) + int(pool)) * EMBED, 3, 3
    )


def _context_of(state: State, x: Tensor, name: str, rates: tuple[int, ...]) -> Tensor:
    parts = []
    if f"{name}image_pool.1.conv.weight" in state:
        mean = conv_norm(state, x.mean((2, 3), keepdim=True), f"{name}image_pool.1")
        parts.append(mean.repeat(1, 1, *x.shape[2:]))
    for i, rate in enumerate(rates):
        branch = f"{name}aspp_modules.{i}"
        if f"{branch}.conv.weight" in state:
            parts.append(conv_norm(state, x, branch, rate))
        else:
            y = conv_norm(state, x, f"{branch}.depthwise_conv", rate, x.shape[1])
            parts.append(conv_norm(state, y, f"{branch}.pointwise_conv"))
    return conv_norm(state, torch.cat(parts, 1), f"{name}bottleneck")


def aspp_head(sep: bool = False, pool: bool = False, seed: int = 11) -> State:
    """fusion_cfg type `aspp`."""
    make = Numbers(seed)
    state = _embed_layers(make) | _context(make, "fuse_layer.", 4 * EMBED, sep, pool)
    return state | make.layer("conv_seg", CLASSES, EMBED, 1, 1)


def aspp_logits(state: State, stages: list[Tensor], rates: tuple[int, ...] = RATES) -> Tensor:
    x = _context_of(state, joined_stages(state, stages), "fuse_layer.", rates)
    return per_cell(state, x, "conv_seg")


def conv_head(kernel: int, seed: int = 12) -> State:
    """fusion_cfg type `conv`."""
    make = Numbers(seed)
    state = _embed_layers(make)
    state |= make.conv_norm("fuse_layer", EMBED, 4 * EMBED, kernel, kernel)
    return state | make.layer("conv_seg", CLASSES, EMBED, 1, 1)


def conv_logits(state: State, stages: list[Tensor]) -> Tensor:
    return per_cell(state, conv_norm(state, joined_stages(state, stages), "fuse_layer"), "conv_seg")


def separable_head(seed: int = 13) -> State:
    """fusion_cfg type `sep_conv`, kernel_size 3."""
    make = Numbers(seed)
    state = _embed_layers(make) | make.conv_norm("fuse_layer.depthwise_conv", 4 * EMBED, 1, 3, 3)
    state |= make.conv_norm("fuse_layer.pointwise_conv", EMBED, 4 * EMBED, 1, 1)
    return state | make.layer("conv_seg", CLASSES, EMBED, 1, 1)


def separable_logits(state: State, stages: list[Tensor]) -> Tensor:
    joined = joined_stages(state, stages)
    x = conv_norm(state, joined, "fuse_layer.depthwise_conv", groups=joined.shape[1])
    return per_cell(state, conv_norm(state, x, "fuse_layer.pointwise_conv"), "conv_seg")


def last_stage_head(seed: int = 14) -> State:
    """Context at the last stage alone (daformer_sepaspp_bottleneck): rawconv_and_aspp embeds it."""
    make = Numbers(seed)
    state = {k: v for k, v in _embed_layers(make).items() if not k.startswith("embed_layers.3")}
    state |= make.layer("embed_layers.3.0", EMBED, B0["widths"][3], 1, 1)
    state |= _context(make, "embed_layers.3.1.", EMBED, True, False)
    state |= make.conv_norm("fuse_layer", EMBED, 4 * EMBED, 1, 1)
    return state | make.layer("conv_seg", CLASSES, EMBED, 1, 1)


def last_stage_logits(state: State, stages: list[Tensor]) -> Tensor:
    """The neck, a SegFormerAdapter of scale 8, enlarges the last stage before."""
    last = F.interpolate(stages[3], scale_factor=8, mode="bilinear", align_corners=False)
    parts = [per_cell(state, x, f"embed_layers.{i}.proj") for i, x in enumerate(stages[:3])]
    parts.append(
        _context_of(state, per_cell(state, last, "embed_layers.3.0"), "embed_layers.3.1.", RATES)
    )
    joined = torch.cat([enlarged(x, stages[0].shape) for x in parts], 1)
    return per_cell(state, conv_norm(state, joined, "fuse_layer"), "conv_seg")


def isa_head(convolutions: int = 1, seed: int = 15) -> State:
    """fusion_cfg type `isa`, with the number of convolutions before keys and queries."""
    make = Numbers(seed)
    state = _embed_layers(make) | make.conv_norm("fuse_layer.in_conv", EMBED, 4 * EMBED, 1, 1)
    for relation in ("global_relation", "local_relation"):
        name = f"fuse_layer.{relation}"
        for part in ("key_project", "query_project"):
            numbers = [""] if convolutions == 1 else [f".{i}" for i in range(convolutions)]
            for number in numbers:
                state |= make.conv_norm(f"{name}.{part}{number}", EMBED, EMBED, 1, 1)
        state |= make.layer(f"{name}.value_project", EMBED, EMBED, 1, 1)
        state |= make.conv_norm(f"{name}.output_project", EMBED, EMBED, 1, 1)
    return state | make.layer("conv_seg", CLASSES, EMBED, 1, 1)


def isa_logits(state: State, stages: list[Tensor], patch: int = PATCH) -> Tensor:
    """Attention among the cells that are a multiple of `patch` apart, then within each patch."""
    x = conv_norm(state, joined_stages(state, stages), "fuse_layer.in_conv")
    height, width = x.shape[2:]
    down, across = -height % patch, -width % patch
    x = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
    spread = torch.zeros_like(x)
    for i in range(patch):
        for j in range(patch):
            cells = x[:, :, i::patch, j::patch]
            spread[:, :, i::patch, j::patch] = _attended(state, cells, "global_relation")
    result = torch.zeros_like(x)
    for i in range(0, x.shape[2], patch):
        for j in range(0, x.shape[3], patch):
            cells = spread[:, :, i : i + patch, j : j + patch]
            result[:, :, i : i + patch, j : j + patch] = _attended(state, cells, "local_relation")
    top, left = down // 2, across // 2
    return per_cell(state, result[:, :, top : top + height, left : left + width], "conv_seg")


def _attended(state: State, cells: Tensor, relation: str) -> Tensor:
    name = f"fuse_layer.{relation}"

    def projected(part: str) -> Tensor:
        y, numbers = cells, [""]
        if f"{name}.{part}.0.conv.weight" in state:
            numbers = [".0", ".1"]
        for number in numbers:
            y = conv_norm(state, y, f"{name}.{part}{number}")
        return y.flatten(2).transpose(1, 2)

    keys, queries = projected("key_project"), projected("query_project")
    values = per_cell(state, cells, f"{name}.value_project").flatten(2).transpose(1, 2)
    weights = (queries @ keys.transpose(1, 2) / math.sqrt(EMBED)).softmax(-1)
    context = (weights @ values).transpose(1, 2).unflatten(2, cells.shape[2:])
    return conv_norm(state, context, f"{name}.output_project")


def segformer_head(width: int = EMBED, seed: int = 16) -> State:
    """DAFormer's SegFormerHead: `linear_c` counts from 0, and the first stage comes first."""
    make, state = Numbers(seed), {}
    for i, inputs in enumerate(B0["widths"]):
        state |= make.layer(f"linear_c.{i}.proj", width, inputs)
    state |= make.conv_norm("linear_fuse", width, 4 * width, 1, 1)
    state |= make.layer("linear_pred", CLASSES, width, 1, 1)
    return state | make.layer("conv_seg", CLASSES, 128, 1, 1)  # of its base class, never read


def segformer_logits(state: State, stages: list[Tensor]) -> Tensor:
    embedded = [per_cell(state, x, f"linear_c.{i}.proj") for i, x in enumerate(stages)]
    joined = torch.cat([enlarged(x, stages[0].shape) for x in embedded], 1)
    return per_cell(state, conv_norm(state, joined, "linear_fuse"), "linear_pred")
