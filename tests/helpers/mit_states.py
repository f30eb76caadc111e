"""State dicts of Mix Transformers by their authors' key patterns, and forward passes from the papers.

Nothing here uses the package or transformers: names, shapes and arithmetic are stated a second time,
from NVlabs' SegFormer (mix_transformer.py, segformer_head.py), mmsegmentation (backbones/mit.py,
decode_heads/segformer_head.py), DAFormer (segformer_head.py, daformer_head.py, isa_head.py,
necks/segformer_adapter.py) and HRDA (hrda_head.py, hrda_encoder_decoder.py).

Every author's pattern is derived from one set of random weights under plain names: stage.embed,
stage.embed_norm, stage.BLOCK.{norm1, q, k, v, out, sr, sr_norm, norm2, fc1, dw, fc2}, stage.norm. The
heads have their own names.
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


class RandomWeights:
    """A source of seeded random weights."""

    def __init__(self, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)

    def layer(self, name: str, *shape: int, bias: bool = True) -> State:
        """Return a linear layer or a convolution."""
        deviation = 1 / math.sqrt(math.prod(shape[1:]))
        state = {f"{name}.weight": torch.randn(*shape, generator=self.generator) * deviation}
        if bias:
            state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=self.generator)
        return state

    def norm(self, name: str, width: int, batch: bool = False) -> State:
        """Return a LayerNorm, or a BatchNorm."""
        state = {
            f"{name}.weight": 0.7 + 0.6 * torch.rand(width, generator=self.generator),
            f"{name}.bias": 0.2 * torch.randn(width, generator=self.generator),
        }
        if batch:
            state[f"{name}.running_mean"] = 0.1 * torch.randn(width, generator=self.generator)
            state[f"{name}.running_var"] = 0.5 + torch.rand(width, generator=self.generator)
        return state

    def conv_norm(self, name: str, *shape: int) -> State:
        """Return a convolution without bias and its BatchNorm, under mmsegmentation's names."""
        return self.layer(f"{name}.conv", *shape, bias=False) | self.norm(
            f"{name}.bn", shape[0], batch=True
        )


def plain_encoder(seed: int = 0) -> State:
    """Return MiT-B0 under the plain names above."""
    random, state, inputs = RandomWeights(seed), {}, 3
    for i, (width, depth) in enumerate(zip(B0["widths"], B0["depths"], strict=True)):
        kernel = 7 if i == 0 else 3
        state |= random.layer(f"{i}.embed", width, inputs, kernel, kernel)
        state |= random.norm(f"{i}.embed_norm", width)
        for j in range(depth):
            block = f"{i}.{j}"
            for projection in ("q", "k", "v", "out"):
                state |= random.layer(f"{block}.{projection}", width, width)
            if REDUCTIONS[i] > 1:
                state |= random.layer(f"{block}.sr", width, width, REDUCTIONS[i], REDUCTIONS[i])
                state |= random.norm(f"{block}.sr_norm", width)
            state |= random.norm(f"{block}.norm1", width) | random.norm(f"{block}.norm2", width)
            state |= random.layer(f"{block}.fc1", 4 * width, width)
            state |= random.layer(f"{block}.dw", 4 * width, 1, 3, 3)
            state |= random.layer(f"{block}.fc2", width, 4 * width)
        state |= random.norm(f"{i}.norm", width)
        inputs = width
    return state


def encode(state: State, x: Tensor, embed_eps: float, block_eps: float) -> list[Tensor]:
    """Return the four stages (B, width, h, w), computed head by head as the paper says."""

    def layer_norm(x: Tensor, name: str, eps: float) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        deviation = torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + eps)
        return (x - mean) / deviation * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def to_grid(x: Tensor, height: int) -> Tensor:
        return x.transpose(1, 2).unflatten(2, (height, -1))

    stages = []
    for i in range(4):
        stride = 4 if i == 0 else 2
        kernel = state[f"{i}.embed.weight"].shape[-1]
        x = F.conv2d(x, state[f"{i}.embed.weight"], state[f"{i}.embed.bias"], stride, kernel // 2)
        height = x.shape[2]
        x = layer_norm(x.flatten(2).transpose(1, 2), f"{i}.embed_norm", embed_eps)
        for j in range(B0["depths"][i]):
            b = f"{i}.{j}"
            y = layer_norm(x, f"{b}.norm1", block_eps)
            keys = y
            if REDUCTIONS[i] > 1:
                reduced = F.conv2d(
                    to_grid(y, height),
                    state[f"{b}.sr.weight"],
                    state[f"{b}.sr.bias"],
                    REDUCTIONS[i],
                )
                keys = layer_norm(reduced.flatten(2).transpose(1, 2), f"{b}.sr_norm", embed_eps)
            q, k, v = linear(y, f"{b}.q"), linear(keys, f"{b}.k"), linear(keys, f"{b}.v")
            width = q.shape[-1] // HEADS[i]
            head_outputs = []
            for head in range(HEADS[i]):
                channels = slice(head * width, (head + 1) * width)
                scores = q[..., channels] @ k[..., channels].transpose(1, 2) / math.sqrt(width)
                head_outputs.append(scores.softmax(-1) @ v[..., channels])
            x = x + linear(torch.cat(head_outputs, -1), f"{b}.out")
            y = linear(layer_norm(x, f"{b}.norm2", block_eps), f"{b}.fc1")
            y = F.conv2d(
                to_grid(y, height),
                state[f"{b}.dw.weight"],
                state[f"{b}.dw.bias"],
                1,
                1,
                1,
                y.shape[-1],
            )
            x = x + linear(F.gelu(y.flatten(2).transpose(1, 2)), f"{b}.fc2")
        x = to_grid(layer_norm(x, f"{i}.norm", block_eps), height)
        stages.append(x)
    return stages


def conv_norm(state: State, x: Tensor, name: str, dilation: int = 1, groups: int = 1) -> Tensor:
    """Apply a convolution, BatchNorm and ReLU."""
    weight = state[f"{name}.conv.weight"]
    x = F.conv2d(x, weight, None, 1, dilation * (weight.shape[-1] // 2), dilation, groups)
    bn = {k: state[f"{name}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias")}
    bn = {k: v.view(-1, 1, 1) for k, v in bn.items()}
    x = (x - bn["running_mean"]) / torch.sqrt(bn["running_var"] + 1e-5)
    return torch.relu(x * bn["weight"] + bn["bias"])


def per_cell(state: State, x: Tensor, name: str) -> Tensor:
    """Apply a linear layer, or a 1x1 convolution, to the channels of every cell."""
    weight, bias = state[f"{name}.weight"].flatten(1), state[f"{name}.bias"]
    return torch.einsum("bchw,oc->bohw", x, weight) + bias.view(-1, 1, 1)


def upsample(x: Tensor, size: torch.Size | tuple[int, ...], align_corners: bool = False) -> Tensor:
    """Resize bilinearly to the last two entries of a size."""
    return F.interpolate(x, tuple(size)[-2:], mode="bilinear", align_corners=align_corners)


def concat(maps: list[Tensor], size: torch.Size, align_corners: bool = False) -> Tensor:
    """Concatenate feature maps on the grid of the last two entries of a size."""
    return torch.cat([upsample(x, size, align_corners) for x in maps], 1)


# ---- Heads: weights under the author's names without `decode_head.`, and logits on the grid ---------


def nvlabs_head(seed: int = 1) -> State:
    """Return NVlabs' SegFormerHead."""
    random, state = RandomWeights(seed), {}
    for i, width in enumerate(B0["widths"], 1):
        state |= random.layer(f"linear_c{i}.proj", EMBED, width)
    state |= random.conv_norm("linear_fuse", EMBED, 4 * EMBED, 1, 1)
    state |= random.layer("linear_pred", CLASSES, EMBED, 1, 1)
    return state | random.layer("conv_seg", CLASSES, 128, 1, 1)  # of its base class, never read


def nvlabs_logits(state: State, stages: list[Tensor]) -> Tensor:
    embedded = [per_cell(state, x, f"linear_c{i}.proj") for i, x in enumerate(stages, 1)]
    fused = conv_norm(state, concat(embedded[::-1], stages[0].shape), "linear_fuse")
    return per_cell(state, fused, "linear_pred")


def mmseg_head(seed: int = 2) -> State:
    """Return mmsegmentation's SegformerHead."""
    random, state = RandomWeights(seed), {}
    for i, width in enumerate(B0["widths"]):
        state |= random.conv_norm(f"convs.{i}", EMBED, width, 1, 1)
    state |= random.conv_norm("fusion_conv", EMBED, 4 * EMBED, 1, 1)
    return state | random.layer("conv_seg", CLASSES, EMBED, 1, 1)


def mmseg_logits(state: State, stages: list[Tensor], align_corners: bool = False) -> Tensor:
    embedded = [conv_norm(state, x, f"convs.{i}") for i, x in enumerate(stages)]
    fused = conv_norm(state, concat(embedded, stages[0].shape, align_corners), "fusion_conv")
    return per_cell(state, fused, "conv_seg")


def daformer_head(seed: int = 3) -> State:
    """Return DAFormerHead with the paper's separable ASPP."""
    random, state = RandomWeights(seed), {}
    for i, width in enumerate(B0["widths"]):
        state |= random.layer(f"embed_layers.{i}.proj", EMBED, width)
    context = "fuse_layer.aspp_modules"
    state |= random.conv_norm(f"{context}.0", EMBED, 4 * EMBED, 1, 1)
    for i in (1, 2, 3):
        state |= random.conv_norm(f"{context}.{i}.depthwise_conv", 4 * EMBED, 1, 3, 3)
        state |= random.conv_norm(f"{context}.{i}.pointwise_conv", EMBED, 4 * EMBED, 1, 1)
    state |= random.conv_norm("fuse_layer.bottleneck", EMBED, 4 * EMBED, 3, 3)
    return state | random.layer("conv_seg", CLASSES, EMBED, 1, 1)


def embed_and_concat(state: State, stages: list[Tensor]) -> Tensor:
    """Apply DAFormer's linear layers and concatenate the stages."""
    embedded = [per_cell(state, x, f"embed_layers.{i}.proj") for i, x in enumerate(stages)]
    return concat(embedded, stages[0].shape)


def daformer_logits(state: State, stages: list[Tensor]) -> Tensor:
    joined = embed_and_concat(state, stages)
    context = "fuse_layer.aspp_modules"
    branches = [conv_norm(state, joined, f"{context}.0")]
    for i, dilation in ((1, 6), (2, 12), (3, 18)):
        channels = joined.shape[1]
        x = conv_norm(state, joined, f"{context}.{i}.depthwise_conv", dilation, channels)
        branches.append(conv_norm(state, x, f"{context}.{i}.pointwise_conv"))
    features = conv_norm(state, torch.cat(branches, 1), "fuse_layer.bottleneck")
    return per_cell(state, features, "conv_seg")


def hrda_head(seed: int = 4) -> State:
    """Return HRDAHead: DAFormer's head, and one with a 1x1 fusion for the attention."""
    random = RandomWeights(seed)
    state = {f"head.{key}": tensor for key, tensor in daformer_head(seed + 1).items()}
    for i, width in enumerate(B0["widths"]):
        state |= random.layer(f"scale_attention.embed_layers.{i}.proj", EMBED, width)
    state |= random.conv_norm("scale_attention.fuse_layer", EMBED, 4 * EMBED, 1, 1)
    return state | random.layer("scale_attention.conv_seg", CLASSES, EMBED, 1, 1)


def hrda_logits(head: State, plain: State, prepared: Tensor) -> Tensor:
    """Return HRDA's logits: averaged over 512 x 512 crops, and fused with the image at half size."""
    seg = {k.removeprefix("head."): v for k, v in head.items() if k.startswith("head.")}
    prefix = "scale_attention."
    scale = {k.removeprefix(prefix): v for k, v in head.items() if k.startswith(prefix)}
    height, width = prepared.shape[-2:]
    detail = torch.zeros(len(prepared), CLASSES, height // 4, width // 4)
    count = torch.zeros(height // 4, width // 4)
    for y in _crop_starts(height):
        for x in _crop_starts(width):
            crop = prepared[..., y : y + 512, x : x + 512]
            cells = (..., slice(y // 4, y // 4 + 128), slice(x // 4, x // 4 + 128))
            detail[cells] += daformer_logits(seg, encode(plain, crop, 1e-5, 1e-6))
            count[cells] += 1
    detail = detail / count
    small = F.interpolate(prepared, scale_factor=0.5, mode="bilinear", align_corners=False)
    stages = encode(plain, small, 1e-5, 1e-6)
    fused = conv_norm(scale, embed_and_concat(scale, stages), "fuse_layer")
    attention = per_cell(scale, fused, "conv_seg").sigmoid()
    context = upsample((1 - attention) * daformer_logits(seg, stages), detail.shape)
    return context + upsample(attention, detail.shape) * detail


def _crop_starts(length: int) -> list[int]:
    count = max(length - 512 + 255, 0) // 256 + 1
    return [max(min(256 * i + 512, length) - 512, 0) for i in range(count)]


# ---- The encoder under its authors' names -------------------------------------------------------


def original_backbone(plain: State) -> State:
    """Rename to NVlabs' and DAFormer's names: stages count from one, key and value share a matrix."""
    names = {"out": "attn.proj", "q": "attn.q", "sr": "attn.sr", "sr_norm": "attn.norm"}
    names |= {"fc1": "mlp.fc1", "fc2": "mlp.fc2", "dw": "mlp.dwconv.dwconv"}
    state = {}
    for key, tensor in plain.items():
        stage, *middle, parameter = key.split(".")
        stage_number, layer = int(stage) + 1, middle[-1]
        if layer in ("embed", "embed_norm"):
            name = f"patch_embed{stage_number}.{'proj' if layer == 'embed' else 'norm'}.{parameter}"
        elif len(middle) == 1:
            name = f"norm{stage_number}.{parameter}"
        elif layer == "v":
            continue
        elif layer == "k":
            tensor = torch.cat([tensor, plain[key.replace(".k.", ".v.")]])
            name = f"block{stage_number}.{middle[0]}.attn.kv.{parameter}"
        else:
            name = f"block{stage_number}.{middle[0]}.{names.get(layer, layer)}.{parameter}"
        state[name] = tensor
    return state


def mmseg_backbone(plain: State) -> State:
    """Rename to mmsegmentation's names: q, k and v share a matrix, the FFN has 1x1 convolutions."""
    names = {"out": "attn.attn.out_proj", "sr": "attn.sr", "sr_norm": "attn.norm"}
    names |= {"fc1": "ffn.layers.0", "dw": "ffn.layers.1", "fc2": "ffn.layers.4"}
    state = {}
    for key, tensor in plain.items():
        stage, *middle, parameter = key.split(".")
        layer = middle[-1]
        if layer in ("embed", "embed_norm"):
            suffix = "projection" if layer == "embed" else "norm"
            name = f"layers.{stage}.0.{suffix}.{parameter}"
        elif len(middle) == 1:
            name = f"layers.{stage}.2.{parameter}"
        elif layer in ("k", "v"):
            continue
        elif layer == "q":
            tensor = torch.cat([tensor, *(plain[key.replace(".q.", f".{p}.")] for p in "kv")])
            name = f"layers.{stage}.1.{middle[0]}.attn.attn.in_proj_{parameter}"
        else:
            if layer in ("fc1", "fc2") and parameter == "weight":
                tensor = tensor[:, :, None, None]
            name = f"layers.{stage}.1.{middle[0]}.{names.get(layer, layer)}.{parameter}"
        state[name] = tensor
    return state


def transformers_4(plain: State, head: State) -> State:
    """Return the whole network under Hugging Face's names of version 4, with NVlabs' head."""
    names = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value"}
    names |= {"out": "attention.output.dense", "sr": "attention.self.sr"}
    names |= {"sr_norm": "attention.self.layer_norm", "norm1": "layer_norm_1"}
    names |= {"norm2": "layer_norm_2", "fc1": "mlp.dense1", "fc2": "mlp.dense2"}
    names |= {"dw": "mlp.dwconv.dwconv"}
    state = {}
    for key, tensor in plain.items():
        stage, *middle, parameter = key.split(".")
        layer = middle[-1]
        if layer in ("embed", "embed_norm"):
            suffix = "proj" if layer == "embed" else "layer_norm"
            name = f"patch_embeddings.{stage}.{suffix}.{parameter}"
        elif len(middle) == 1:
            name = f"layer_norm.{stage}.{parameter}"
        else:
            name = f"block.{stage}.{middle[0]}.{names[layer]}.{parameter}"
        state[f"segformer.encoder.{name}"] = tensor
    for key, tensor in head.items():
        if key.startswith("conv_seg"):
            continue
        name = key.replace("linear_fuse.conv", "linear_fuse").replace(
            "linear_fuse.bn", "batch_norm"
        )
        name = name.replace("linear_pred", "classifier")
        for i in range(1, 5):
            name = name.replace(f"linear_c{i}.", f"linear_c.{i - 1}.")
        state[f"decode_head.{name}"] = tensor
    return state


def whole_network(backbone: State, head: State, prefix: str = "") -> State:
    """Return backbone and decode head under mmsegmentation's prefixes, after a prefix of their own."""
    state = {f"{prefix}backbone.{key}": tensor for key, tensor in backbone.items()}
    return state | {f"{prefix}decode_head.{key}": tensor for key, tensor in head.items()}
