"""SegFormer, DAFormer and HRDA checkpoints of mmsegmentation, NVlabs, MIC, SePiCo."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sfss_ray.errors import CheckpointError
from sfss_ray.models.architectures.segformer import SIZES
from sfss_ray.models.families.daformer import daformer_options, hrda_options
from sfss_ray.models.families.epsilon import with_epsilon
from sfss_ray.models.families.mit_names import from_mmseg, from_original, size_of
from sfss_ray.models.families.mmseg import (
    State,
    classes_of_meta,
    has,
    not_needed,
    strangers,
    under,
    unknown_head,
)
from sfss_ray.models.families.mmseg_settings import Settings, conflict, settings_of, shown
from sfss_ray.models.families.recognised_file import Recognised

_GRID = {
    "num_heads": [1, 2, 5, 8],
    "patch_sizes": [7, 3, 3, 3],
    "strides": [4, 2, 2, 2],
    "sr_ratios": [8, 4, 2, 1],
}
"""Of every Mix Transformer that is built here."""


def mmseg_mit(state: State, content: Any) -> Recognised | None:
    """`backbone.*` and `decode_head.*` of mmsegmentation and of the programs made from it."""
    naming = _naming(state)
    if naming is None:
        return _refuse_other_heads(state)
    backbone = {k: v for k, v in under(state, "backbone.").items() if not k.startswith("head.")}
    renamed = naming(backbone)
    size = size_of(renamed)
    head = under(state, "decode_head.")
    kind = _kind(head)
    last = _LAST[kind]
    weights = _NAMINGS[kind](head)
    outputs = outputs_of(weights, f"decode_head.{last}")
    settings = settings_of(content, kind, outputs)
    _check_backbone(settings)
    weights = with_epsilon(weights, settings.epsilon("decode_head"))
    unused = [key for key in state if _not_needed(key, last)]
    return Recognised(
        family=_FAMILIES[kind],
        network=f"{kind}_{size}",
        num_classes=outputs,
        state=renamed | weights | strangers(state, ("backbone.", "decode_head.", *unused)),
        options=_options(kind, head, settings, size),
        unused=tuple(unused),
        mean=settings.mean,
        std=settings.std,
        channel_order=settings.channel_order,
        value_range=255.0,
        align_corners=settings.align_corners,
        classes=classes_of_meta(content),
        notes=settings.notes(),
    )


def _naming(state: State) -> Callable[[State], dict[str, Tensor]] | None:
    """How the file names its Mix Transformer, or None where it has none."""
    if has(state, "backbone.patch_embed1.") or has(state, "backbone.block1."):
        return from_original
    if has(state, "backbone.layers.0.0.projection."):
        return from_mmseg
    if has(state, "patch_embed1.") and has(state, "block1."):
        raise CheckpointError(
            "the file holds a Mix Transformer alone, its decode_head is missing: give a checkpoint that"
            " was trained to segment"
        )
    return None


def _refuse_other_heads(state: State) -> None:
    """Not ours, unless it is mmsegmentation's: then CheckpointError says which heads are known."""
    if not (has(state, "backbone.") and has(state, "decode_head.")):
        return
    raise unknown_head(under(state, "decode_head."), "its backbone is no Mix Transformer")


def _kind(head: State) -> str:
    """The network's kind by the keys of its decode head; CheckpointError for other heads."""
    if not head:
        raise CheckpointError(
            "the file's decode_head is missing: give a checkpoint that was trained to segment"
        )
    if has(head, "scale_attention."):
        return "hrda"
    if has(head, "linear_fuse.") and (has(head, "linear_c1.") or has(head, "linear_c.")):
        return "segformer"
    if has(head, "embed_layers.") and has(head, "fuse_layer."):
        return "daformer"
    if has(head, "fusion_conv."):
        return "segformer_mmseg"
    raise unknown_head(head, "on a Mix Transformer")


def _options(kind: str, head: State, settings: Settings, size: str) -> dict[str, Any]:
    if kind == "daformer":
        return daformer_options(head, settings)
    if kind == "hrda":
        return hrda_options(head, settings)
    if settings.of("neck"):
        raise conflict("neck", settings.of("neck", "type"), "none")
    mode = settings.of("decode_head", "interpolate_mode")
    if mode not in (None, "bilinear"):
        raise conflict("decode_head.interpolate_mode", mode, "bilinear")
    if kind == "segformer":
        return {"original_norms": True} | decoder_width(head.get("linear_fuse.conv.weight"), size)
    return {}


def decoder_width(fusion: Tensor | None, size: str) -> dict[str, Any]:
    """The option for a decode head of another width than the size's own, from its fusing layer."""
    width = SIZES[size].decoder if fusion is None else fusion.shape[0]
    return {} if width == SIZES[size].decoder else {"decoder_width": width}


def _check_backbone(settings: Settings) -> None:
    """CheckpointError for a Mix Transformer whose keys and shapes hide that it is another one."""
    for name, known in _GRID.items():
        value = settings.of("backbone", name)
        if isinstance(value, (list, tuple)) and list(value) != known:
            raise conflict(f"backbone.{name}", value, shown(known))
    epsilon = settings.of("backbone", "norm_cfg", "eps")
    if epsilon not in (None, 1e-6):
        raise conflict("backbone.norm_cfg.eps", epsilon, "1e-6")


def _segformer_names(head: State) -> dict[str, Tensor]:
    """NVlabs' names, which count from 1, and DAFormer's, which count from 0.

    NVlabs' code and transformers' join the stages from the last to the first, DAFormer's from the first
    to the last: its fusing weights are turned round.
    """
    rules = (
        (r"^linear_c([1-4])\.", lambda m: f"linear_projections.{int(m[1]) - 1}."),
        (r"^linear_c\.", "linear_projections."),
        (r"^linear_fuse\.conv\.", "linear_fuse."),
        (r"^linear_fuse\.bn\.", "batch_norm."),
    )
    fusion = head.get("linear_fuse.conv.weight")
    if fusion is not None and has(head, "linear_c."):
        turned = torch.cat(fusion.chunk(len(_GRID["num_heads"]), 1)[::-1], 1)
        head = dict(head) | {"linear_fuse.conv.weight": turned}
    return _head_names(head, "linear_pred", rules)


def _plain_names(head: State) -> dict[str, Tensor]:
    return _head_names(head, "conv_seg")


def _head_names(head: State, last: str, rules: tuple = ()) -> dict[str, Tensor]:
    renamed = {}
    for key, value in head.items():
        if key.startswith(f"{last}."):
            renamed[f"classifier.{key.removeprefix(f'{last}.')}"] = value
        elif not key.startswith("conv_seg."):
            for pattern, replacement in rules:
                key = re.sub(pattern, replacement, key)
            renamed[f"body.decode_head.{key}"] = value
    return renamed


def _hrda_names(head: State) -> dict[str, Tensor]:
    """One head for both sizes, one for attention, each with its last convolution."""
    if not (has(head, "head.embed_layers.") and has(head, "scale_attention.fuse_layer.")):
        raise unknown_head(head, "HRDA is known with DAFormer's head alone")
    last = {
        "head.conv_seg.": "classifier.seg.",
        "scale_attention.conv_seg.": "classifier.attention.",
    }
    renamed = {}
    for key, value in head.items():
        start = next((start for start in last if key.startswith(start)), None)
        name = f"body.decode_head.{key}" if start is None else last[start] + key.removeprefix(start)
        renamed[name] = value
    return renamed


def _not_needed(key: str, last: str) -> bool:
    """What no mmsegmentation network needs, and a classifier that nothing reads."""
    idle = not last.endswith("conv_seg") and key.startswith("decode_head.conv_seg.")
    return not_needed(key) or idle


def outputs_of(state: State, name: str) -> int:
    """Rows of the classifier; CheckpointError where it is missing."""
    layers = (
        "classifier.weight",
        "classifier.bias",
        "classifier.seg.weight",
        "classifier.seg.bias",
    )
    rows = next((state[layer] for layer in layers if layer in state), None)
    if rows is None:
        raise CheckpointError(f"its classifier {name} is missing: give the whole checkpoint")
    return rows.shape[0]


_FAMILIES = {
    "daformer": "DAFormer, MIC, SePiCo",
    "hrda": "HRDA, MIC",
    "segformer": "SegFormer (NVlabs)",
    "segformer_mmseg": "SegFormer (mmseg)",
}
_NAMINGS = {
    "daformer": _plain_names,
    "hrda": _hrda_names,
    "segformer": _segformer_names,
    "segformer_mmseg": _plain_names,
}
_LAST = {
    "daformer": "conv_seg",
    "hrda": "head.conv_seg",
    "segformer": "linear_pred",
    "segformer_mmseg": "conv_seg",
}
"""The makers' names of the classifier."""
