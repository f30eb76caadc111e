"""Conversion of the parameter names of Mix Transformers to the names used here.

The names used here are those of transformers from 5.16 on, under `body.encoder.`. The other names were
read from the public code of transformers 4 and 5, SegFormer (NVlabs), DAFormer and mmsegmentation.
"""

from __future__ import annotations

import re

from torch import Tensor

from sfss_ray.errors import CheckpointError
from sfss_ray.models.architectures.segformer import SIZES
from sfss_ray.models.families.keys import State

Rules = tuple[tuple[str, str], ...]
"""Regular expressions and their replacements, applied in order."""

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
_MMSEG_STAGES: Rules = (
    (r"^layers\.(\d)\.0\.projection\.", r"stages.\1.patch_embeddings.proj."),
    (r"^layers\.(\d)\.0\.norm\.", r"stages.\1.patch_embeddings.layer_norm."),
    (r"^layers\.(\d)\.1\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"^layers\.(\d)\.2\.", r"stages.\1.layer_norm."),
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
_JOINED_PROJECTIONS = {
    ".attention.qkv_proj.": (".q_proj.", ".k_proj.", ".v_proj."),
    ".attention.kv_proj.": (".k_proj.", ".v_proj."),
}


def from_transformers(state: State) -> dict[str, Tensor]:
    """Convert the encoder of transformers 4 or 5; the keys come without the prefix `segformer.`."""
    return {f"body.encoder.{_rename(key, _TRANSFORMERS)}": tensor for key, tensor in state.items()}


def from_original(state: State) -> dict[str, Tensor]:
    """Convert the backbone of NVlabs and DAFormer: patch_embed1, block1.0.attn.kv, norm1."""
    return _convert_blocks({_rename_original_stage(key): tensor for key, tensor in state.items()})


def from_mmseg(state: State) -> dict[str, Tensor]:
    """Convert the backbone of mmsegmentation: layers.0.0, layers.0.1.0.attn.attn, layers.0.2."""
    return _convert_blocks({_rename(key, _MMSEG_STAGES): tensor for key, tensor in state.items()})


def size_of(state: State) -> str:
    """Return the size of a Mix Transformer, b0 to b5, from its width and its depths.

    Args:
        state: The encoder under the names used here.

    Raises:
        CheckpointError: the width and the depths are of no known size.
    """
    matches = [re.match(r"body\.encoder\.stages\.(\d)\.blocks\.(\d+)\.", key) for key in state]
    blocks = {(int(match[1]), int(match[2])) for match in matches if match}
    depths = tuple(
        max((block + 1 for stage, block in blocks if stage == i), default=0) for i in range(4)
    )
    embedding = state.get("body.encoder.stages.0.patch_embeddings.proj.weight")
    if embedding is None:
        raise CheckpointError(
            "the backbone's first patch embedding is missing: give the whole checkpoint"
        )
    for name, size in SIZES.items():
        if size.depths == depths and size.widths[0] == embedding.shape[0]:
            return name
    sizes = ", ".join(f"{name} {size.depths} {size.widths[0]}" for name, size in SIZES.items())
    raise CheckpointError(
        f"its backbone is a Mix Transformer with depths {depths} and first width {embedding.shape[0]},"
        f" which is no known size: known are {sizes}"
    )


def _rename(key: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _rename_original_stage(key: str) -> str:
    """Rename patch_embed1, block1 and norm1, which count stages from one."""
    match = re.match(r"(patch_embed|block|norm)([1-4])\.(.*)", key)
    if match is None:
        return key
    stage, suffix = int(match[2]) - 1, match[3]
    if match[1] == "patch_embed":
        return f"stages.{stage}.patch_embeddings.{suffix.replace('norm.', 'layer_norm.')}"
    return f"stages.{stage}.{'blocks' if match[1] == 'block' else 'layer_norm'}.{suffix}"


def _convert_blocks(state: State) -> dict[str, Tensor]:
    """Rename the parameters of blocks, split joined projections, and flatten 1x1 kernels to matrices."""
    converted = {}
    for key, tensor in state.items():
        name = f"body.encoder.{_rename(key, _BLOCK)}"
        joined = next((part for part in _JOINED_PROJECTIONS if part in name), None)
        if joined is not None:
            projections = _JOINED_PROJECTIONS[joined]
            for projection, rows in zip(projections, tensor.chunk(len(projections)), strict=True):
                converted[name.replace(joined, f".attention{projection}")] = rows.clone()
        elif ".mlp.fc" in name and tensor.ndim == 4:
            converted[name] = tensor.flatten(1)
        else:
            converted[name] = tensor
    return converted
