"""SegFormer, DAFormer, HRDA checkpoints: Hugging Face, mmsegmentation, NVlabs, MIC, SePiCo."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sfss_ray.errors import CheckpointError
from sfss_ray.models.families.mit_names import (
    from_mmseg,
    from_original,
    from_transformers,
    size_of,
)
from sfss_ray.models.families.mmseg import (
    MMSEG_MEAN,
    MMSEG_STD,
    State,
    classes_of_meta,
    has,
    not_needed,
    one_copy,
    strangers,
    under,
    unknown_head,
)
from sfss_ray.models.families.recognised import Recognised


def huggingface_segformer(state: State, content: Any) -> Recognised | None:
    """`segformer.*` and `decode_head.*` under the names of transformers 4 or 5."""
    if not has(state, "segformer."):
        return None
    if not has(state, "decode_head."):
        raise CheckpointError(
            "the file holds a SegFormer encoder alone, its decode_head is missing: give a checkpoint"
            " that was trained to segment"
        )
    head_start = "body.decode_head.linear_projections."
    renamed = from_transformers(under(state, "segformer."))
    for key, value in under(state, "decode_head.").items():
        if key.startswith("classifier."):
            renamed[key] = value
        else:
            old = re.match(r"linear_c\.(.*)", key)
            renamed[f"{head_start}{old[1]}" if old else f"body.decode_head.{key}"] = value
    known = ("segformer.", "decode_head.")
    return Recognised(
        family="SegFormer (Hugging Face)",
        network=f"segformer_{size_of(renamed)}",
        num_classes=_outputs(renamed, "decode_head.classifier"),
        state=renamed | strangers(state, known),
    )


def mmseg_mit(state: State, content: Any) -> Recognised | None:
    """`backbone.*` and `decode_head.*` of mmsegmentation and of the programs made from it.

    The student's weights are taken; where there are EMA weights alone, those.
    """
    state, copies, notes = one_copy(state)
    naming = _naming(state)
    if naming is None:
        return _refuse_other_heads(state)
    backbone = {k: v for k, v in under(state, "backbone.").items() if not k.startswith("head.")}
    renamed = naming(backbone)
    family, network, head, last = _head(under(state, "decode_head."))
    unused = [*copies, *(key for key in state if _not_needed(key, last))]
    return Recognised(
        family=family,
        network=f"{network}_{size_of(renamed)}",
        num_classes=_outputs(head, f"decode_head.{last}"),
        state=renamed | head | strangers(state, ("backbone.", "decode_head.", *unused)),
        unused=tuple(unused),
        mean=MMSEG_MEAN,
        std=MMSEG_STD,
        value_range=255.0,
        classes=classes_of_meta(content),
        notes=notes,
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


def _head(head: State) -> tuple[str, str, dict[str, Tensor], str]:
    """(family, network, weights under our names, the maker's name of the classifier)."""
    if not head:
        raise CheckpointError(
            "the file's decode_head is missing: give a checkpoint that was trained to segment"
        )
    if has(head, "scale_attention."):
        return ("HRDA, MIC", "hrda", _hrda_names(head), "head.conv_seg")
    if has(head, "linear_fuse."):
        rules = (
            (r"^linear_c([1-4])\.", lambda m: f"linear_projections.{int(m[1]) - 1}."),
            (r"^linear_fuse\.conv\.", "linear_fuse."),
            (r"^linear_fuse\.bn\.", "batch_norm."),
        )
        last = "linear_pred"
        return ("SegFormer (NVlabs)", "segformer", _head_names(head, last, rules), last)
    if has(head, "embed_layers.") and has(head, "fuse_layer.aspp_modules."):
        return ("DAFormer, MIC, SePiCo", "daformer", _head_names(head, "conv_seg"), "conv_seg")
    if has(head, "fusion_conv."):
        return ("SegFormer (mmseg)", "segformer_mmseg", _head_names(head, "conv_seg"), "conv_seg")
    raise unknown_head(head, "on a Mix Transformer")


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
    if not (has(head, "head.embed_layers.") and has(head, "scale_attention.fuse_layer.conv.")):
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


def _outputs(state: State, name: str) -> int:
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
