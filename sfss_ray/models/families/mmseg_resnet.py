"""DeepLab checkpoints of mmsegmentation on ResNets, and DAFormer's with DeepLabV2's head."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from sfss_ray.errors import CheckpointError
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

_DEPTHS = {6: 50, 23: 101}
"""Blocks of the third stage -> depth."""
_STRIDE = (
    "the backbone is taken for output stride 8 (mmsegmentation's d8), for no key tells strides and"
    " dilations: a model made at stride 16 or 32 would predict nonsense here"
)


def deeplab_of_mmseg(state: State, content: Any) -> Recognised | None:
    """`backbone.layer1-4` of bottlenecks and a `decode_head` of DeepLabV2, V3 or V3+."""
    state, copies, notes = one_copy(state)
    backbone, head = under(state, "backbone."), under(state, "decode_head.")
    if not (head and has(backbone, "layer1.0.conv1.")):
        return None
    backbone = {key: v for key, v in backbone.items() if not not_needed(f"backbone.{key}")}
    kind, renamed = _head(head)
    renamed |= {f"body.backbone.{key}": value for key, value in backbone.items()}
    unused = [*copies, *(key for key in state if not_needed(key))]
    return Recognised(
        family="DeepLab (mmseg, DAFormer)",
        network=f"{kind}_mmseg_{_backbone(backbone)}",
        num_classes=_outputs(renamed),
        state=renamed | strangers(state, ("backbone.", "decode_head.", *unused)),
        unused=tuple(unused),
        mean=MMSEG_MEAN,
        std=MMSEG_STD,
        value_range=255.0,
        classes=classes_of_meta(content),
        notes=(*notes, _STRIDE),
    )


def _backbone(backbone: State) -> str:
    """resnet50, resnet101, with `_v1c` for the deep stem; CheckpointError for other ResNets."""
    downsample = backbone.get("layer1.0.downsample.1.weight")
    if downsample is not None and downsample.ndim == 4:
        raise CheckpointError(_other("ResNet-D, which averages where it shrinks,"))
    if not has(backbone, "layer1.0.conv3."):
        raise CheckpointError(_other("ResNet of basic blocks (18 or 34)"))
    found = [re.match(r"layer3\.(\d+)\.", key) for key in backbone]
    blocks = 1 + max((int(match[1]) for match in found if match), default=-1)
    if blocks not in _DEPTHS:
        raise CheckpointError(_other(f"ResNet of {blocks} blocks in its third stage"))
    return f"resnet{_DEPTHS[blocks]}" + ("_v1c" if has(backbone, "stem.") else "")


def _other(what: str) -> str:
    return (
        f"an mmsegmentation checkpoint on a {what}: known are ResNet-50 and -101, plain or v1c; any"
        " other network can be given in Python with sfss_ray.wrap_model"
    )


def _head(head: State) -> tuple[str, dict[str, Tensor]]:
    """(kind, weights under our names)."""
    if not has(head, "aspp_modules."):
        raise unknown_head(head, "on a ResNet")
    if not has(head, "image_pool.") and has(head, "aspp_modules.0.conv.bias"):
        return "deeplabv2", {_branch(key): value for key, value in head.items()}
    if not has(head, "image_pool."):
        raise unknown_head(head, "on a ResNet, without image_pool")
    kind = "deeplabv3plus" if has(head, "sep_bottleneck.") else "deeplabv3"
    renamed = {}
    for key, value in head.items():
        last = key.startswith("conv_seg.")
        name = f"classifier.{key.removeprefix('conv_seg.')}" if last else f"body.decode_head.{key}"
        renamed[name] = value
    return kind, renamed


def _branch(key: str) -> str:
    return re.sub(r"^aspp_modules\.(\d)\.conv\.", r"classifier.conv2d_list.\1.", key)


def _outputs(renamed: State) -> int:
    rows = next((v for key, v in renamed.items() if key.startswith("classifier.")), None)
    if rows is None:
        raise CheckpointError("its classifier decode_head.conv_seg is missing: give the whole file")
    return rows.shape[0]
