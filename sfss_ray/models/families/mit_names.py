"""Parameter names of Mix Transformers by their makers, and how they become ours.

Ours are those of transformers from 5.16 on, under `body.encoder.`. Facts from the public code of
transformers 4 and 5, of SegFormer (NVlabs), of DAFormer and of mmsegmentation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from sfss_ray.errors import CheckpointError
from sfss_ray.models.architectures.segformer import SIZES

Rules = tuple[tuple[str, str], ...]

_TRANSFORMERS: Rules = (
    (r"^encoder\.patch_embeddings\.(\d)\.", r"stages.\1.patch_embeddings."),
    (r"^encoder\.block\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"^encoder\.layer_norm\.(\d)\.", r"stages.\1.layer_norm."),
    (r"\.layer_norm_1\.", ".layernorm_before."),
    (r"\.layer_norm_2\.", ".layernorm_after."),
    (r"\.attention\.self\.query\.", ".attention.q_proj."),
    (r"\.attention\.self\.key\.", ".attention.k_proj."),
    (r"\.attention\.self\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.attention\.self\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
    (r"\.attention\.self\.layer_norm\.", ".attention.sequence_reduction.layer_norm."),
    (r"\.mlp\.dense1\.", ".mlp.fc1."),
    (r"\.mlp\.dense2\.", ".mlp.fc2."),
)
_BLOCK: Rules = (
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
    (r"\.attn\.norm\.", ".attention.sequence_reduction.layer_norm."),
    (r"\.attn\.q\.", ".attention.q_proj."),
    (r"\.attn\.kv\.", ".attention.kv_proj."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.attn\.in_proj_", ".attention.qkv_proj."),
    (r"\.attn\.attn\.out_proj\.", ".attention.o_proj."),
    (r"\.ffn\.layers\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.dwconv.dwconv."),
    (r"\.ffn\.layers\.4\.", ".mlp.fc2."),
)
_JOINED = {
    ".attention.qkv_proj.": (".q_proj.", ".k_proj.", ".v_proj."),
    ".attention.kv_proj.": (".k_proj.", ".v_proj."),
}


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Encoder weights under transformers' names, version 4 or 5, without the prefix `segformer.`."""
    return {f"body.encoder.{_renamed(key, _TRANSFORMERS)}": value for key, value in state.items()}


def from_original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Backbone weights as NVlabs and DAFormer name them: patch_embed1, block1.0.attn.kv, norm1."""
    return _unjoined({_original_stage(key): value for key, value in state.items()})


def from_mmseg(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Backbone weights as mmsegmentation names them: layers.0.0, layers.0.1.0.attn.attn, layers.0.2."""
    stages: Rules = (
        (r"^layers\.(\d)\.0\.projection\.", r"stages.\1.patch_embeddings.proj."),
        (r"^layers\.(\d)\.0\.norm\.", r"stages.\1.patch_embeddings.layer_norm."),
        (r"^layers\.(\d)\.1\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"^layers\.(\d)\.2\.", r"stages.\1.layer_norm."),
    )
    return _unjoined({_renamed(key, stages): value for key, value in state.items()})


def size_of(state: Mapping[str, Tensor]) -> str:
    """b0 to b5, told by the width and the depths; CheckpointError for a MiT of no known size.

    `state` is under our names.
    """
    blocks = [re.match(r"body\.encoder\.stages\.(\d)\.blocks\.(\d+)\.", key) for key in state]
    found = {(int(match[1]), int(match[2])) for match in blocks if match}
    depths = tuple(
        max((block + 1 for stage, block in found if stage == i), default=0) for i in range(4)
    )
    first = state.get("body.encoder.stages.0.patch_embeddings.proj.weight")
    if first is None:
        raise CheckpointError(
            "the backbone's first patch embedding is missing: give the whole checkpoint"
        )
    for name, size in SIZES.items():
        if size.depths == depths and size.widths[0] == first.shape[0]:
            return name
    raise CheckpointError(
        f"its backbone is a Mix Transformer of depths {depths} and first width {first.shape[0]}, of no"
        f" known size: known are {', '.join(f'{n} {s.depths} {s.widths[0]}' for n, s in SIZES.items())}"
    )


def _renamed(key: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _original_stage(key: str) -> str:
    """patch_embed1, block1, norm1 count stages from one."""
    match = re.match(r"(patch_embed|block|norm)([1-4])\.(.*)", key)
    if match is None:
        return key
    stage, rest = int(match[2]) - 1, match[3]
    if match[1] == "patch_embed":
        return f"stages.{stage}.patch_embeddings.{rest.replace('norm.', 'layer_norm.')}"
    return f"stages.{stage}.{'blocks' if match[1] == 'block' else 'layer_norm'}.{rest}"


def _unjoined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value apart, where a maker keeps them in one matrix; 1x1 kernels as matrices."""
    result = {}
    for key, value in state.items():
        name = f"body.encoder.{_renamed(key, _BLOCK)}"
        joined = next((part for part in _JOINED if part in name), None)
        if joined is not None:
            parts = _JOINED[joined]
            for part, rows in zip(parts, value.chunk(len(parts)), strict=True):
                result[name.replace(joined, f".attention{part}")] = rows.clone()
        elif ".mlp.fc" in name and value.ndim == 4:
            result[name] = value.flatten(1)
        else:
            result[name] = value
    return result
