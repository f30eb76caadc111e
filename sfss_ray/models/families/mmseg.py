"""What all checkpoints of mmsegmentation, and of the programs made from it, have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sfss_ray.errors import CheckpointError

State = Mapping[str, Tensor]
_KNOWN_HEADS = (
    "SegFormer's (linear_c1-4 or linear_c, linear_fuse, linear_pred; or convs, fusion_conv, conv_seg),"
    " DAFormer's (embed_layers, fuse_layer, conv_seg) and HRDA's with DAFormer's (head,"
    " scale_attention), each on a Mix Transformer; DeepLabV2's (aspp_modules with biases), DeepLabV3's"
    " (image_pool, aspp_modules, bottleneck, conv_seg) and DeepLabV3+'s (c1_bottleneck, sep_bottleneck"
    " too), each on ResNet-50 or -101, plain or v1c"
)
_NAMES_OF_HEADS = (
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
"""Starts of keys in a decode head -> mmsegmentation's name for it."""


def classes_of_meta(content: Any) -> tuple[str, ...] | None:
    """The class names that mmsegmentation keeps beside the weights."""
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping):
        return None
    inner = meta.get("dataset_meta")
    names = inner.get("classes") if isinstance(inner, Mapping) else meta.get("CLASSES")
    if isinstance(names, (list, tuple)) and names and all(isinstance(n, str) for n in names):
        return tuple(names)
    return None


def unknown_head(head: State, why: str) -> CheckpointError:
    """The refusal of a decode head of no known kind."""
    parts = sorted({key.split(".")[0] for key in head})
    name = next((name for start, name in _NAMES_OF_HEADS if has(head, start)), "")
    return CheckpointError(
        f"an mmsegmentation checkpoint whose decode head {name and name + ' '}is not known ({why};"
        f" decode_head holds {', '.join(parts) or 'nothing'}): known decode heads are {_KNOWN_HEADS};"
        " any other network can be given in Python with sfss_ray.wrap_model"
    )


def not_needed(key: str) -> bool:
    """Auxiliary heads, SePiCo's statistics, ImageNet's classifier."""
    starts = ("auxiliary_head.", "proj_head.", "feat_distributions.", "backbone.head.")
    return key.startswith((*starts, "backbone.fc."))


def strangers(state: State, known: tuple[str, ...]) -> dict[str, Tensor]:
    """Tensors of no known part: the loader reports them as unexpected."""
    return {key: value for key, value in state.items() if not key.startswith(known)}


def has(state: State, start: str) -> bool:
    """Whether a key starts so."""
    return any(key.startswith(start) for key in state)


def under(state: State, start: str) -> dict[str, Tensor]:
    """The tensors whose keys start so, without that start."""
    return {key.removeprefix(start): v for key, v in state.items() if key.startswith(start)}
