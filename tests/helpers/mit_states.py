"""State dicts of Mix Transformers by their makers' key patterns, and a forward pass from the papers.

Nothing here uses the package or transformers: names, shapes and arithmetic are stated a second time,
from NVlabs' SegFormer (mix_transformer.py, segformer_head.py), mmsegmentation (backbones/mit.py,
decode_heads/segformer_head.py), DAFormer (segformer_head.py, daformer_head.py, isa_head.py,
necks/segformer_adapter.py) and HRDA (hrda_head.py, hrda_encoder_decoder.py).
Each maker's pattern is written from one set of random numbers under plain names:
    stage.embed, stage.embed_norm, stage.BLOCK.{norm1, q, k, v, out, sr, sr_norm, norm2, fc1, dw, fc2},
    stage.norm; and the head's own names.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
B0 = {"widths": (32, 64, 160, 256), "depths": (2, 2, 2, 2)}
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
EMBED = 256
CLASSES = 19


class Numbers:
    """Random weights, seeded."""

    def __init__(self, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)

    def layer(self, name: str, *shape: int, bias: bool = True) -> State:
        spread = 1 / math.sqrt(math.prod(shape[1:]))
        state = {f"{name}.weight": torch.randn(*shape, generator=self.generator) * spread}
        if bias:
            state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=self.generator)
        return state

    def norm(self, name: str, width: int, batch: bool = False) -> State:
        state = {
            f"{name}.weight": 0.7 + 0.6 * torch.rand(width, generator=self.generator),
            f"{name}.bias": 0.2 * torch.randn(width, generator=self.generator),
        }
        if batch:
            state[f"{name}.running_mean"] = 0.1 * torch.randn(width, generator=self.generator)
            state[f"{name}.running_var"] = 0.5 + torch.rand(width, generator=self.generator)
        return state

    def conv_norm(self, name: str, *shape: int) -> State:
        return self.layer(f"{name}.conv", *shape, bias=False) | self.norm(
            f"{name}.bn", shape[0], batch=True
        )


def plain_encoder(seed: int = 0) -> State:
    """MiT-B0 under the plain names above."""
    make, state, inputs = Numbers(seed), {}, 3
    for i, (width, depth) in enumerate(zip(B0["widths"], B0["depths"], strict=True)):
        kernel = 7 if i == 0 else 3
        state |= make.layer(f"{i}.embed", width, inputs, kernel, kernel)
        state |= make.norm(f"{i}.embed_norm", width)
        for j in range(depth):
            block = f"{i}.{j}"
            for part in ("q", "k", "v", "out"):
                state |= make.layer(f"{block}.{part}", width, width)
            if REDUCTIONS[i] > 1:
                state |= make.layer(f"{block}.sr", width, width, REDUCTIONS[i], REDUCTIONS[i])
                state |= make.norm(f"{block}.sr_norm", width)
            state |= make.norm(f"{block}.norm1", width) | make.norm(f"{block}.norm2", width)
            state |= make.layer(f"{block}.fc1", 4 * width, width)
            state |= make.layer(f"{block}.dw", 4 * width, 1, 3, 3)
            state |= make.layer(f"{block}.fc2", width, 4 * width)
        state |= make.norm(f"{i}.norm", width)
        inputs = width
    return state


def encode(state: State, x: Tensor, embed_eps: float, block_eps: float) -> list[Tensor]:
    """The four stages (B, width, h, w), cell by cell as the paper says."""

    def normed(x: Tensor, name: str, eps: float) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        spread = torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + eps)
        return (x - mean) / spread * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def grid(x: Tensor, height: int) -> Tensor:
        return x.transpose(1, 2).unflatten(2, (height, -1))

    stages = []
    for i in range(4):
        stride = 4 if i == 0 else 2
        kernel = state[f"{i}.embed.weight"].shape[-1]
        x = F.conv2d(x, state[f"{i}.embed.weight"], state[f"{i}.embed.bias"], stride, kernel // 2)
        height = x.shape[2]
        x = normed(x.flatten(2).transpose(1, 2), f"{i}.embed_norm", embed_eps)
        for j in range(B0["depths"][i]):
            b = f"{i}.{j}"
            y = normed(x, f"{b}.norm1", block_eps)
            keys = y
            if REDUCTIONS[i] > 1:
                less = F.conv2d(
                    grid(y, height),
                    state[f"{b}.sr.weight"],
                    state[f"{b}.sr.bias"],
                    REDUCTIONS[i],
                )
                keys = normed(less.flatten(2).transpose(1, 2), f"{b}.sr_norm", embed_eps)
            q, k, v = linear(y, f"{b}.q"), linear(keys, f"{b}.k"), linear(keys, f"{b}.v")
            size = q.shape[-1] // HEADS[i]
            looked = []
            for head in range(HEADS[i]):
                part = slice(head * size, (head + 1) * size)
                weights = (q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)).softmax(
                    -1
                )
                looked.append(weights @ v[..., part])
            x = x + linear(torch.cat(looked, -1), f"{b}.out")
            y = linear(normed(x, f"{b}.norm2", block_eps), f"{b}.fc1")
            y = F.conv2d(
                grid(y, height),
                state[f"{b}.dw.weight"],
                state[f"{b}.dw.bias"],
                1,
                1,
                1,
                y.shape[-1],
            )
            x = x + linear(F.gelu(y.flatten(2).transpose(1, 2)), f"{b}.fc2")
        x = grid(normed(x, f"{i}.norm", block_eps), height)
        stages.append(x)
    return stages


def conv_norm(state: State, x: Tensor, name: str, dilation: int = 1, groups: int = 1) -> Tensor:
    weight = state[f"{name}.conv.weight"]
    x = F.conv2d(x, weight, None, 1, dilation * (weight.shape[-1] // 2), dilation, groups)
    part = {k: state[f"{name}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias")}
    part = {k: v.view(-1, 1, 1) for k, v in part.items()}
    x = (x - part["running_mean"]) / torch.sqrt(part["running_var"] + 1e-5)
    return torch.relu(x * part["weight"] + part["bias"])


def per_cell(state: State, x: Tensor, name: str) -> Tensor:
    weight, bias = state[f"{name}.weight"].flatten(1), state[f"{name}.bias"]
    return torch.einsum("bchw,oc->bohw", x, weight) + bias.view(-1, 1, 1)


def enlarged(x: Tensor, size: torch.Size | tuple[int, ...], align_corners: bool = False) -> Tensor:
    return F.interpolate(x, tuple(size)[-2:], mode="bilinear", align_corners=align_corners)


# ---- heads: weights under the maker's names without `decode_head.`, and logits on the grid -----------


def nvlabs_head(seed: int = 1) -> State:
    make, state = Numbers(seed), {}
    for i, width in enumerate(B0["widths"], 1):
        state |= make.layer(f"linear_c{i}.proj", EMBED, width)
    state |= make.conv_norm("linear_fuse", EMBED, 4 * EMBED, 1, 1)
    state |= make.layer("linear_pred", CLASSES, EMBED, 1, 1)
    return state | make.layer("conv_seg", CLASSES, 128, 1, 1)  # of its base class, never read


def nvlabs_logits(state: State, stages: list[Tensor]) -> Tensor:
    embedded = [per_cell(state, x, f"linear_c{i}.proj") for i, x in enumerate(stages, 1)]
    joined = torch.cat([enlarged(x, stages[0].shape) for x in reversed(embedded)], 1)
    return per_cell(state, conv_norm(state, joined, "linear_fuse"), "linear_pred")


def mmseg_head(seed: int = 2) -> State:
    make, state = Numbers(seed), {}
    for i, width in enumerate(B0["widths"]):
        state |= make.conv_norm(f"convs.{i}", EMBED, width, 1, 1)
    state |= make.conv_norm("fusion_conv", EMBED, 4 * EMBED, 1, 1)
    return state | make.layer("conv_seg", CLASSES, EMBED, 1, 1)


def mmseg_logits(state: State, stages: list[Tensor], align_corners: bool = False) -> Tensor:
    embedded = [conv_norm(state, x, f"convs.{i}") for i, x in enumerate(stages)]
    joined = torch.cat([enlarged(x, stages[0].shape, align_corners) for x in embedded], 1)
    return per_cell(state, conv_norm(state, joined, "fusion_conv"), "conv_seg")


def daformer_head(seed: int = 3) -> State:
    make, state = Numbers(seed), {}
    for i, width in enumerate(B0["widths"]):
        state |= make.layer(f"embed_layers.{i}.proj", EMBED, width)
    context = "fuse_layer.aspp_modules"
    state |= make.conv_norm(f"{context}.0", EMBED, 4 * EMBED, 1, 1)
    for i in (1, 2, 3):
        state |= make.conv_norm(f"{context}.{i}.depthwise_conv", 4 * EMBED, 1, 3, 3)
        state |= make.conv_norm(f"{context}.{i}.pointwise_conv", EMBED, 4 * EMBED, 1, 1)
    state |= make.conv_norm("fuse_layer.bottleneck", EMBED, 4 * EMBED, 3, 3)
    return state | make.layer("conv_seg", CLASSES, EMBED, 1, 1)


def joined_stages(state: State, stages: list[Tensor]) -> Tensor:
    embedded = [per_cell(state, x, f"embed_layers.{i}.proj") for i, x in enumerate(stages)]
    return torch.cat([enlarged(x, stages[0].shape) for x in embedded], 1)


def daformer_features(state: State, stages: list[Tensor]) -> Tensor:
    joined = joined_stages(state, stages)
    context = "fuse_layer.aspp_modules"
    seen = [conv_norm(state, joined, f"{context}.0")]
    for i, dilation in ((1, 6), (2, 12), (3, 18)):
        channels = joined.shape[1]
        x = conv_norm(state, joined, f"{context}.{i}.depthwise_conv", dilation, channels)
        seen.append(conv_norm(state, x, f"{context}.{i}.pointwise_conv"))
    return conv_norm(state, torch.cat(seen, 1), "fuse_layer.bottleneck")


def daformer_logits(state: State, stages: list[Tensor]) -> Tensor:
    return per_cell(state, daformer_features(state, stages), "conv_seg")


def hrda_head(seed: int = 4) -> State:
    make = Numbers(seed)
    state = {f"head.{key}": value for key, value in daformer_head(seed + 1).items()}
    for i, width in enumerate(B0["widths"]):
        state |= make.layer(f"scale_attention.embed_layers.{i}.proj", EMBED, width)
    state |= make.conv_norm("scale_attention.fuse_layer", EMBED, 4 * EMBED, 1, 1)
    return state | make.layer("scale_attention.conv_seg", CLASSES, EMBED, 1, 1)


def hrda_logits(head: State, plain: State, prepared: Tensor) -> Tensor:
    """Logits of 512 x 512 crops, half a crop apart, averaged; fused with the half-size image."""
    seg = {k.removeprefix("head."): v for k, v in head.items() if k.startswith("head.")}
    start = "scale_attention."
    scale = {k.removeprefix(start): v for k, v in head.items() if k.startswith(start)}
    height, width = prepared.shape[-2:]
    detail = torch.zeros(len(prepared), CLASSES, height // 4, width // 4)
    count = torch.zeros(height // 4, width // 4)
    for y in _crop_starts(height):
        for x in _crop_starts(width):
            crop = prepared[..., y : y + 512, x : x + 512]
            logits = daformer_logits(seg, encode(plain, crop, 1e-5, 1e-6))
            place = (..., slice(y // 4, y // 4 + 128), slice(x // 4, x // 4 + 128))
            detail[place] += logits
            count[place] += 1
    detail = detail / count
    small = F.interpolate(prepared, scale_factor=0.5, mode="bilinear", align_corners=False)
    stages = encode(plain, small, 1e-5, 1e-6)
    embedded = [per_cell(scale, x, f"embed_layers.{i}.proj") for i, x in enumerate(stages)]
    joined = torch.cat([enlarged(x, stages[0].shape) for x in embedded], 1)
    attention = per_cell(scale, conv_norm(scale, joined, "fuse_layer"), "conv_seg").sigmoid()
    context = enlarged((1 - attention) * daformer_logits(seg, stages), detail.shape)
    return context + enlarged(attention, detail.shape) * detail


def _crop_starts(length: int) -> list[int]:
    number = max(length - 512 + 255, 0) // 256 + 1
    return [max(min(256 * i + 512, length) - 512, 0) for i in range(number)]


# ---- the encoder under its makers' names --------------------------------------------------------


def original_backbone(plain: State) -> State:
    """NVlabs and DAFormer: stages from one, key and value in one matrix."""
    parts = {"out": "attn.proj", "q": "attn.q", "sr": "attn.sr", "sr_norm": "attn.norm"}
    parts |= {"fc1": "mlp.fc1", "fc2": "mlp.fc2", "dw": "mlp.dwconv.dwconv"}
    state = {}
    for key, value in plain.items():
        stage, *middle, kind = key.split(".")
        number, part = int(stage) + 1, middle[-1]
        if part in ("embed", "embed_norm"):
            name = f"patch_embed{number}.{'proj' if part == 'embed' else 'norm'}.{kind}"
        elif len(middle) == 1:
            name = f"norm{number}.{kind}"
        elif part == "v":
            continue
        elif part == "k":
            value = torch.cat([value, plain[key.replace(".k.", ".v.")]])
            name = f"block{number}.{middle[0]}.attn.kv.{kind}"
        else:
            name = f"block{number}.{middle[0]}.{parts.get(part, part)}.{kind}"
        state[name] = value
    return state


def mmseg_backbone(plain: State) -> State:
    """mmsegmentation: query, key and value in one matrix; linear maps of the FFN as 1x1 convolutions."""
    parts = {"out": "attn.attn.out_proj", "sr": "attn.sr", "sr_norm": "attn.norm"}
    parts |= {"fc1": "ffn.layers.0", "dw": "ffn.layers.1", "fc2": "ffn.layers.4"}
    state = {}
    for key, value in plain.items():
        stage, *middle, kind = key.split(".")
        part = middle[-1]
        if part in ("embed", "embed_norm"):
            name = f"layers.{stage}.0.{'projection' if part == 'embed' else 'norm'}.{kind}"
        elif len(middle) == 1:
            name = f"layers.{stage}.2.{kind}"
        elif part in ("k", "v"):
            continue
        elif part == "q":
            others = [plain[key.replace(".q.", f".{other}.")] for other in "kv"]
            value = torch.cat([value, *others])
            name = f"layers.{stage}.1.{middle[0]}.attn.attn.in_proj_{kind}"
        else:
            if part in ("fc1", "fc2") and kind == "weight":
                value = value[:, :, None, None]
            name = f"layers.{stage}.1.{middle[0]}.{parts.get(part, part)}.{kind}"
        state[name] = value
    return state


def transformers_4(plain: State, head: State) -> State:
    """Hugging Face's names of version 4, the whole network; the head is NVlabs'."""
    parts = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value"}
    parts |= {"out": "attention.output.dense", "sr": "attention.self.sr"}
    parts |= {"sr_norm": "attention.self.layer_norm", "norm1": "layer_norm_1"}
    parts |= {"norm2": "layer_norm_2", "fc1": "mlp.dense1", "fc2": "mlp.dense2"}
    parts |= {"dw": "mlp.dwconv.dwconv"}
    state = {}
    for key, value in plain.items():
        stage, *middle, kind = key.split(".")
        part = middle[-1]
        if part in ("embed", "embed_norm"):
            inner = "proj" if part == "embed" else "layer_norm"
            name = f"patch_embeddings.{stage}.{inner}.{kind}"
        elif len(middle) == 1:
            name = f"layer_norm.{stage}.{kind}"
        else:
            name = f"block.{stage}.{middle[0]}.{parts[part]}.{kind}"
        state[f"segformer.encoder.{name}"] = value
    names = {"linear_fuse.conv.weight": "linear_fuse.weight"}
    for key, value in head.items():
        if key.startswith("conv_seg"):
            continue
        name = names.get(key, key).replace("linear_fuse.bn", "batch_norm")
        name = name.replace("linear_pred", "classifier")
        for i in range(1, 5):
            name = name.replace(f"linear_c{i}.", f"linear_c.{i - 1}.")
        state[f"decode_head.{name}"] = value
    return state
