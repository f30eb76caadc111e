"""Recogniser of SegFormer, DAFormer and HRDA checkpoints of mmsegmentation, NVlabs, MIC and SePiCo."""

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
from sfss_ray.models.families.keys import State, has_prefix, subtree
from sfss_ray.models.families.mit_names import Rules, from_mmseg, from_original, size_of
from sfss_ray.models.families.mmseg import (
    classes_of_meta,
    is_unused,
    unknown_head_error,
    unknown_tensors,
)
from sfss_ray.models.families.mmseg_settings import (
    Settings,
    format_setting,
    read_settings,
    unsupported_setting,
)
from sfss_ray.models.families.recognised_file import RecognisedFile

_SUPPORTED_BACKBONE = {
    "num_heads": [1, 2, 5, 8],
    "patch_sizes": [7, 3, 3, 3],
    "strides": [4, 2, 2, 2],
    "sr_ratios": [8, 4, 2, 1],
}
"""Settings of every Mix Transformer that this package builds."""


def mmseg_mit(state: State, content: Any) -> RecognisedFile | None:
    """Recognise `backbone.*` and `decode_head.*` of mmsegmentation and of programs based on it.

    Raises:
        CheckpointError: the file is of mmsegmentation, but its backbone or head is not supported.
    """
    rename_backbone = _backbone_renamer(state)
    if rename_backbone is None:
        _refuse_other_mmseg_files(state)
        return None
    backbone = {k: v for k, v in subtree(state, "backbone.").items() if not k.startswith("head.")}
    renamed = rename_backbone(backbone)
    size = size_of(renamed)

    # The head's keys decide the network. The configuration may only confirm or refine them.
    head = subtree(state, "decode_head.")
    head_type = _head_type(head)
    last_layer = _LAST_LAYERS[head_type]
    weights = _HEAD_RENAMERS[head_type](head)
    outputs = num_outputs(weights, f"decode_head.{last_layer}")
    settings = read_settings(content, head_type, outputs)
    _check_backbone(settings)
    weights = with_epsilon(weights, settings.epsilon("decode_head"))

    # Tensors of unknown parts stay in the state, so that the loader reports them.
    unused = tuple(key for key in state if _is_unused(key, last_layer))
    return RecognisedFile(
        family=_FAMILY_NAMES[head_type],
        network=f"{head_type}_{size}",
        num_classes=outputs,
        state=renamed | weights | unknown_tensors(state, ("backbone.", "decode_head.", *unused)),
        options=_network_options(head_type, head, settings, size),
        unused=unused,
        card=settings.card(classes_of_meta(content)),
        notes=settings.notes(),
    )


def _backbone_renamer(state: State) -> Callable[[State], dict[str, Tensor]] | None:
    """Return the conversion of the file's Mix Transformer, or None if it has none."""
    if has_prefix(state, "backbone.patch_embed1.") or has_prefix(state, "backbone.block1."):
        return from_original
    if has_prefix(state, "backbone.layers.0.0.projection."):
        return from_mmseg
    if has_prefix(state, "patch_embed1.") and has_prefix(state, "block1."):
        raise CheckpointError(
            "the file holds a Mix Transformer alone, its decode_head is missing: give a checkpoint that"
            " was trained to segment"
        )
    return None


def _refuse_other_mmseg_files(state: State) -> None:
    """Raise CheckpointError for an mmsegmentation file on an unknown backbone."""
    if has_prefix(state, "backbone.") and has_prefix(state, "decode_head."):
        head = subtree(state, "decode_head.")
        raise unknown_head_error(head, "its backbone is not a Mix Transformer")


def _head_type(head: State) -> str:
    """Return the type of a decode head by its keys; CheckpointError for unknown types."""
    if not head:
        raise CheckpointError(
            "the file's decode_head is missing: give a checkpoint that was trained to segment"
        )
    if has_prefix(head, "scale_attention."):
        return "hrda"
    if has_prefix(head, "linear_fuse.") and (
        has_prefix(head, "linear_c1.") or has_prefix(head, "linear_c.")
    ):
        return "segformer"
    if has_prefix(head, "embed_layers.") and has_prefix(head, "fuse_layer."):
        return "daformer"
    if has_prefix(head, "fusion_conv."):
        return "segformer_mmseg"
    raise unknown_head_error(head, "on a Mix Transformer")


def _network_options(head_type: str, head: State, settings: Settings, size: str) -> dict[str, Any]:
    if head_type == "daformer":
        return daformer_options(head, settings)
    if head_type == "hrda":
        return hrda_options(head, settings)
    if settings.get("neck"):
        raise unsupported_setting("neck", settings.get("neck", "type"), "none")
    mode = settings.get("decode_head", "interpolate_mode")
    if mode not in (None, "bilinear"):
        raise unsupported_setting("decode_head.interpolate_mode", mode, "bilinear")
    if head_type == "segformer":
        return {"original_norms": True} | decoder_width(head.get("linear_fuse.conv.weight"), size)
    return {}


def decoder_width(fusion: Tensor | None, size: str) -> dict[str, Any]:
    """Return the option for a SegFormer head that is wider or narrower than usual for its size.

    Args:
        fusion: The weight of the head's fusion layer, if the file has it.
        size: The size of the Mix Transformer, b0 to b5.
    """
    width = SIZES[size].decoder if fusion is None else fusion.shape[0]
    return {} if width == SIZES[size].decoder else {"decoder_width": width}


def _check_backbone(settings: Settings) -> None:
    """Raise CheckpointError for settings of the backbone that change neither keys nor shapes."""
    for name, supported in _SUPPORTED_BACKBONE.items():
        configured = settings.get("backbone", name)
        if isinstance(configured, (list, tuple)) and list(configured) != supported:
            raise unsupported_setting(f"backbone.{name}", configured, format_setting(supported))
    epsilon = settings.get("backbone", "norm_cfg", "eps")
    if epsilon not in (None, 1e-6):
        raise unsupported_setting("backbone.norm_cfg.eps", epsilon, "1e-6")


def _rename_segformer_head(head: State) -> dict[str, Tensor]:
    """Rename the heads of NVlabs, which count stages from 1, and of DAFormer, which count from 0.

    NVlabs and transformers concatenate the stages from last to first, DAFormer from first to last, so
    the input channels of DAFormer's fusion layer are reordered.
    """
    rules: Rules = (
        (r"^linear_c1\.", "linear_projections.0."),
        (r"^linear_c2\.", "linear_projections.1."),
        (r"^linear_c3\.", "linear_projections.2."),
        (r"^linear_c4\.", "linear_projections.3."),
        (r"^linear_c\.", "linear_projections."),
        (r"^linear_fuse\.conv\.", "linear_fuse."),
        (r"^linear_fuse\.bn\.", "batch_norm."),
    )
    fusion = head.get("linear_fuse.conv.weight")
    if fusion is not None and has_prefix(head, "linear_c."):
        stages = len(_SUPPORTED_BACKBONE["num_heads"])
        reordered = torch.cat(fusion.chunk(stages, 1)[::-1], 1)
        head = dict(head) | {"linear_fuse.conv.weight": reordered}
    return _rename_head(head, "linear_pred", rules)


def _rename_plain_head(head: State) -> dict[str, Tensor]:
    return _rename_head(head, "conv_seg")


def _rename_head(head: State, last_layer: str, rules: Rules = ()) -> dict[str, Tensor]:
    """Separate the classifier from a head, and rename the other layers by rules."""
    renamed = {}
    for key, tensor in head.items():
        if key.startswith(f"{last_layer}."):
            renamed[f"classifier.{key.removeprefix(f'{last_layer}.')}"] = tensor
        elif not key.startswith("conv_seg."):
            for pattern, replacement in rules:
                key = re.sub(pattern, replacement, key)
            renamed[f"body.decode_head.{key}"] = tensor
    return renamed


def _rename_hrda_head(head: State) -> dict[str, Tensor]:
    """Separate the classifiers of HRDA's two heads: one for both scales, one for the attention."""
    if not (
        has_prefix(head, "head.embed_layers.") and has_prefix(head, "scale_attention.fuse_layer.")
    ):
        raise unknown_head_error(head, "HRDA is supported with DAFormer's head only")
    classifiers = {
        "head.conv_seg.": "classifier.seg.",
        "scale_attention.conv_seg.": "classifier.attention.",
    }
    renamed = {}
    for key, tensor in head.items():
        prefix = next((prefix for prefix in classifiers if key.startswith(prefix)), None)
        if prefix is None:
            renamed[f"body.decode_head.{key}"] = tensor
        else:
            renamed[classifiers[prefix] + key.removeprefix(prefix)] = tensor
    return renamed


def _is_unused(key: str, last_layer: str) -> bool:
    """Whether a tensor is not needed by any network of mmsegmentation, or is an idle classifier.

    Heads with another last layer inherit a `conv_seg` from their base class, and never call it.
    """
    idle = not last_layer.endswith("conv_seg") and key.startswith("decode_head.conv_seg.")
    return is_unused(key) or idle


def num_outputs(state: State, name: str) -> int:
    """Return the number of outputs of a classifier.

    Args:
        state: Weights under the names used here.
        name: The classifier's name in the file, for the message.

    Raises:
        CheckpointError: the classifier is missing.
    """
    parameters = (
        "classifier.weight",
        "classifier.bias",
        "classifier.seg.weight",
        "classifier.seg.bias",
    )
    rows = next((state[parameter] for parameter in parameters if parameter in state), None)
    if rows is None:
        raise CheckpointError(f"its classifier {name} is missing: give the whole checkpoint")
    return rows.shape[0]


_FAMILY_NAMES = {
    "daformer": "DAFormer, MIC, SePiCo",
    "hrda": "HRDA, MIC",
    "segformer": "SegFormer (NVlabs)",
    "segformer_mmseg": "SegFormer (mmseg)",
}
_HEAD_RENAMERS = {
    "daformer": _rename_plain_head,
    "hrda": _rename_hrda_head,
    "segformer": _rename_segformer_head,
    "segformer_mmseg": _rename_plain_head,
}
_LAST_LAYERS = {
    "daformer": "conv_seg",
    "hrda": "head.conv_seg",
    "segformer": "linear_pred",
    "segformer_mmseg": "conv_seg",
}
"""The name of the classifier in the decode head of the original code."""
