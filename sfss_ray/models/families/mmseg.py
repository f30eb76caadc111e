"""Parts that all checkpoints of mmsegmentation, and of programs based on it, have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sfss_ray.errors import CheckpointError
from sfss_ray.models.families.keys import State, has_prefix

_SUPPORTED_HEADS = (
    "SegFormer's (linear_c1-4 or linear_c, linear_fuse, linear_pred; or convs, fusion_conv, conv_seg),"
    " DAFormer's (embed_layers, fuse_layer, conv_seg) and HRDA's with DAFormer's (head,"
    " scale_attention), each on a Mix Transformer; DeepLabV2's (aspp_modules with biases), DeepLabV3's"
    " (image_pool, aspp_modules, bottleneck, conv_seg) and DeepLabV3+'s (c1_bottleneck, sep_bottleneck"
    " too), each on ResNet-50 or -101, plain or v1c"
)
_HEAD_NAMES = (
    ("scale_attention.", "HRDAHead"),
    ("psp_modules.", "UPerHead or PSPHead"),
    ("fuse_layer.", "DAFormerHead"),
    ("global_relation.", "ISAHead"),
    ("pam.", "DAHead"),
    ("linear_fuse.", "SegFormerHead"),
    ("fusion_conv.", "SegformerHead"),
    ("0.", "several heads in a row"),
    ("object_context_block.", "OCRHead"),
    ("convs.", "FCNHead"),
)
"""Prefixes of keys in a decode head, with mmsegmentation's name of the head."""


def classes_of_meta(content: Any) -> tuple[str, ...]:
    """Return the class names that mmsegmentation saves beside the weights, or none."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping):
        return ()
    dataset = meta.get("dataset_meta")
    names = dataset.get("classes") if isinstance(dataset, Mapping) else meta.get("CLASSES")
    if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return ()


def unknown_head_error(head: State, reason: str) -> CheckpointError:
    """Return the error for a decode head that is not supported.

    Args:
        head: Its tensors, without the prefix `decode_head.`.
        reason: Where it was found, or what is unknown about it.
    """
    parts = sorted({key.split(".")[0] for key in head})
    name = next((name for prefix, name in _HEAD_NAMES if has_prefix(head, prefix)), "")
    return CheckpointError(
        f"an mmsegmentation checkpoint whose decode head {name and name + ' '}is not supported"
        f" ({reason}; decode_head holds {', '.join(parts) or 'nothing'}): supported decode heads are"
        f" {_SUPPORTED_HEADS}; any other network can be given in Python with sfss_ray.wrap_model"
    )


def is_unused(key: str) -> bool:
    """Whether a tensor is not needed: auxiliary heads, SePiCo's statistics, ImageNet's classifier."""
    prefixes = ("auxiliary_head.", "proj_head.", "feat_distributions.", "backbone.head.")
    return key.startswith((*prefixes, "backbone.fc."))


def unknown_tensors(state: State, known_prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the tensors of no known part, which the loader reports as unexpected."""
    return {key: tensor for key, tensor in state.items() if not key.startswith(known_prefixes)}
