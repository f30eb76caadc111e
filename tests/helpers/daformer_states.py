"""Decode heads of DAFormer's code in all types of its configurations: weights and logits.

Names are those of its daformer_head.py, isa_head.py and segformer_head.py, without `decode_head.`. The
arithmetic is stated a second time.
"""

from __future__ import annotations

import math

import torch
from mit_states import (
    B0,
    CLASSES,
    EMBED,
    RandomWeights,
    State,
    concat,
    conv_norm,
    embed_and_concat,
    per_cell,
)
from torch import Tensor
from torch.nn import functional as F

DILATIONS = (1, 6, 12, 18)
PATCH = 8


def _embed_layers(random: RandomWeights, prefix: str = "embed_layers") -> State:
    state: State = {}
    for i, width in enumerate(B0["widths"]):
        state |= random.layer(f"{prefix}.{i}.proj", EMBED, width)
    return state


def _context(random: RandomWeights, prefix: str, inputs: int, sep: bool, pool: bool) -> State:
    """Return an ASPPWrapper."""
    state = random.conv_norm(f"{prefix}aspp_modules.0", EMBED, inputs, 1, 1)
    if pool:
        state |= random.conv_norm(f"{prefix}image_pool.1", EMBED, inputs, 1, 1)
    for i in range(1, len(DILATIONS)):
        branch = f"{prefix}aspp_modules.{i}"
        if sep:
            state |= random.conv_norm(f"{branch}.depthwise_conv", inputs, 1, 3, 3)
            state |= random.conv_norm(f"{branch}.pointwise_conv", EMBED, inputs, 1, 1)
        else:
            state |= random.conv_norm(branch, EMBED, inputs, 3, 3)
    branches = len(DILATIONS) + int(pool)
    return state | random.conv_norm(f"{prefix}bottleneck", EMBED, branches * EMBED, 3, 3)


def _context_output(state: State, x: Tensor, prefix: str, dilations: tuple[int, ...]) -> Tensor:
    branches = []
    if f"{prefix}image_pool.1.conv.weight" in state:
        mean = conv_norm(state, x.mean((2, 3), keepdim=True), f"{prefix}image_pool.1")
        branches.append(mean.repeat(1, 1, *x.shape[2:]))
    for i, dilation in enumerate(dilations):
        branch = f"{prefix}aspp_modules.{i}"
        if f"{branch}.conv.weight" in state:
            branches.append(conv_norm(state, x, branch, dilation))
        else:
            y = conv_norm(state, x, f"{branch}.depthwise_conv", dilation, x.shape[1])
            branches.append(conv_norm(state, y, f"{branch}.pointwise_conv"))
    return conv_norm(state, torch.cat(branches, 1), f"{prefix}bottleneck")


def aspp_head(sep: bool = False, pool: bool = False, seed: int = 11) -> State:
    """Return the head of fusion_cfg type `aspp`."""
    random = RandomWeights(seed)
    state = _embed_layers(random) | _context(random, "fuse_layer.", 4 * EMBED, sep, pool)
    return state | random.layer("conv_seg", CLASSES, EMBED, 1, 1)


def aspp_logits(
    state: State, stages: list[Tensor], dilations: tuple[int, ...] = DILATIONS
) -> Tensor:
    x = _context_output(state, embed_and_concat(state, stages), "fuse_layer.", dilations)
    return per_cell(state, x, "conv_seg")


def conv_head(kernel: int, seed: int = 12) -> State:
    """Return the head of fusion_cfg type `conv`."""
    random = RandomWeights(seed)
    state = _embed_layers(random)
    state |= random.conv_norm("fuse_layer", EMBED, 4 * EMBED, kernel, kernel)
    return state | random.layer("conv_seg", CLASSES, EMBED, 1, 1)


def conv_logits(state: State, stages: list[Tensor]) -> Tensor:
    fused = conv_norm(state, embed_and_concat(state, stages), "fuse_layer")
    return per_cell(state, fused, "conv_seg")


def separable_head(seed: int = 13) -> State:
    """Return the head of fusion_cfg type `sep_conv`, kernel_size 3."""
    random = RandomWeights(seed)
    state = _embed_layers(random)
    state |= random.conv_norm("fuse_layer.depthwise_conv", 4 * EMBED, 1, 3, 3)
    state |= random.conv_norm("fuse_layer.pointwise_conv", EMBED, 4 * EMBED, 1, 1)
    return state | random.layer("conv_seg", CLASSES, EMBED, 1, 1)


def separable_logits(state: State, stages: list[Tensor]) -> Tensor:
    joined = embed_and_concat(state, stages)
    x = conv_norm(state, joined, "fuse_layer.depthwise_conv", groups=joined.shape[1])
    return per_cell(state, conv_norm(state, x, "fuse_layer.pointwise_conv"), "conv_seg")


def last_stage_head(seed: int = 14) -> State:
    """Return a head with context at the last stage only (daformer_sepaspp_bottleneck)."""
    random = RandomWeights(seed)
    state = {k: v for k, v in _embed_layers(random).items() if not k.startswith("embed_layers.3")}
    state |= random.layer("embed_layers.3.0", EMBED, B0["widths"][3], 1, 1)
    state |= _context(random, "embed_layers.3.1.", EMBED, True, False)
    state |= random.conv_norm("fuse_layer", EMBED, 4 * EMBED, 1, 1)
    return state | random.layer("conv_seg", CLASSES, EMBED, 1, 1)


def last_stage_logits(state: State, stages: list[Tensor]) -> Tensor:
    """Return the logits; the neck, a SegFormerAdapter of scale 8, enlarges the last stage before."""
    enlarged = F.interpolate(stages[3], scale_factor=8, mode="bilinear", align_corners=False)
    embedded = [per_cell(state, x, f"embed_layers.{i}.proj") for i, x in enumerate(stages[:3])]
    raw = per_cell(state, enlarged, "embed_layers.3.0")
    context = _context_output(state, raw, "embed_layers.3.1.", DILATIONS)
    fused = conv_norm(state, concat([*embedded, context], stages[0].shape), "fuse_layer")
    return per_cell(state, fused, "conv_seg")


def isa_head(convolutions: int = 1, seed: int = 15) -> State:
    """Return the head of fusion_cfg type `isa`, with some convolutions for keys and queries."""
    random = RandomWeights(seed)
    state = _embed_layers(random)
    state |= random.conv_norm("fuse_layer.in_conv", EMBED, 4 * EMBED, 1, 1)
    suffixes = [""] if convolutions == 1 else [f".{i}" for i in range(convolutions)]
    for relation in ("global_relation", "local_relation"):
        name = f"fuse_layer.{relation}"
        for projection in ("key_project", "query_project"):
            for suffix in suffixes:
                state |= random.conv_norm(f"{name}.{projection}{suffix}", EMBED, EMBED, 1, 1)
        state |= random.layer(f"{name}.value_project", EMBED, EMBED, 1, 1)
        state |= random.conv_norm(f"{name}.output_project", EMBED, EMBED, 1, 1)
    return state | random.layer("conv_seg", CLASSES, EMBED, 1, 1)


def isa_logits(state: State, stages: list[Tensor], patch: int = PATCH) -> Tensor:
    """Return the logits: attention among cells a multiple of `patch` apart, then within each patch."""
    x = conv_norm(state, embed_and_concat(state, stages), "fuse_layer.in_conv")
    height, width = x.shape[2:]
    pad_y, pad_x = -height % patch, -width % patch
    x = F.pad(x, (pad_x // 2, pad_x - pad_x // 2, pad_y // 2, pad_y - pad_y // 2))
    distant = torch.zeros_like(x)
    for i in range(patch):
        for j in range(patch):
            cells = x[:, :, i::patch, j::patch]
            distant[:, :, i::patch, j::patch] = _attention(state, cells, "global_relation")
    near = torch.zeros_like(x)
    for i in range(0, x.shape[2], patch):
        for j in range(0, x.shape[3], patch):
            cells = distant[:, :, i : i + patch, j : j + patch]
            near[:, :, i : i + patch, j : j + patch] = _attention(state, cells, "local_relation")
    rows = slice(pad_y // 2, pad_y // 2 + height)
    columns = slice(pad_x // 2, pad_x // 2 + width)
    return per_cell(state, near[:, :, rows, columns], "conv_seg")


def _attention(state: State, cells: Tensor, relation: str) -> Tensor:
    name = f"fuse_layer.{relation}"

    def project(projection: str) -> Tensor:
        y, suffixes = cells, [""]
        if f"{name}.{projection}.0.conv.weight" in state:
            suffixes = [".0", ".1"]
        for suffix in suffixes:
            y = conv_norm(state, y, f"{name}.{projection}{suffix}")
        return y.flatten(2).transpose(1, 2)

    keys, queries = project("key_project"), project("query_project")
    projected = per_cell(state, cells, f"{name}.value_project").flatten(2).transpose(1, 2)
    weights = (queries @ keys.transpose(1, 2) / math.sqrt(EMBED)).softmax(-1)
    context = (weights @ projected).transpose(1, 2).unflatten(2, cells.shape[2:])
    return conv_norm(state, context, f"{name}.output_project")


def segformer_head(width: int = EMBED, seed: int = 16) -> State:
    """Return DAFormer's SegFormerHead: `linear_c` counts from 0, and the first stage comes first."""
    random, state = RandomWeights(seed), {}
    for i, inputs in enumerate(B0["widths"]):
        state |= random.layer(f"linear_c.{i}.proj", width, inputs)
    state |= random.conv_norm("linear_fuse", width, 4 * width, 1, 1)
    state |= random.layer("linear_pred", CLASSES, width, 1, 1)
    return state | random.layer("conv_seg", CLASSES, 128, 1, 1)  # of its base class, never read


def segformer_logits(state: State, stages: list[Tensor]) -> Tensor:
    embedded = [per_cell(state, x, f"linear_c.{i}.proj") for i, x in enumerate(stages)]
    fused = conv_norm(state, concat(embedded, stages[0].shape), "linear_fuse")
    return per_cell(state, fused, "linear_pred")
