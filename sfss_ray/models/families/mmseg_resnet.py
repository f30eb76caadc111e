"""mmsegmentation checkpoints on a ResNet: DeepLabV2 of DAFormer's code, DeepLabV3.

Key names were read from the public code of mmsegmentation and DAFormer.
"""

from __future__ import annotations

from typing import Any

from sfss_ray.errors import CheckpointError
from sfss_ray.models.families.mmseg import (
    MEAN,
    NOT_NEEDED,
    STD,
    State,
    classes_of_meta,
    has,
    strangers,
    student_of,
    under,
)
from sfss_ray.models.families.recognised import Recognised

_FIRST_OF_HEAD = "aspp_modules.0.conv.weight"


def dilated_resnet_of_mmseg(state: State, content: Any) -> Recognised | None:
    """`backbone.layer1-4` with `decode_head.aspp_modules`; None for other backbones and heads."""
    state, copies, notes = student_of(state)
    backbone, head = under(state, "backbone."), under(state, "decode_head.")
    if not has(backbone, "layer4.") or _FIRST_OF_HEAD not in head:
        return None
    pyramid = has(head, "bottleneck.")
    unused = [*copies, *(key for key in state if key.startswith(NOT_NEEDED))]
    renamed = {f"body.backbone.{key}": value for key, value in backbone.items()}
    if pyramid:
        last = under(head, "conv_seg.")
        if not last:
            raise CheckpointError(
                "its classifier decode_head.conv_seg is missing: give the whole checkpoint"
            )
        rest = strangers(head, ("conv_seg.",))
        renamed |= {f"body.decode_head.{key}": value for key, value in rest.items()}
    else:
        last = head
    renamed |= {f"classifier.{key}": value for key, value in last.items()}
    stem = "_v1c" if has(backbone, "stem.") else ""
    version = 3 if pyramid else 2
    outputs = next(value.shape[0] for value in last.values())
    return Recognised(
        family=f"DeepLabV{version} (mmseg{'' if pyramid else ', DAFormer'})",
        network=f"deeplabv{version}_mmseg_resnet{_depth(backbone)}{stem}",
        num_classes=outputs,
        state=renamed | strangers(state, ("backbone.", "decode_head.", *unused)),
        unused=tuple(unused),
        mean=MEAN,
        std=STD,
        value_range=255.0,
        classes=classes_of_meta(content),
        notes=notes,
    )


def _depth(backbone: State) -> int:
    """By the blocks of stage 3; other depths are refused."""
    blocks = {key.split(".")[1] for key in backbone if key.startswith("layer3.")}
    depth = {6: 50, 23: 101}.get(len(blocks))
    if depth is None or "layer4.0.conv3.weight" not in backbone:
        raise CheckpointError(
            f"an mmsegmentation checkpoint on a ResNet with {len(blocks)} blocks in stage 3: known are"
            " ResNet-50 (6) and ResNet-101 (23); any other network can be given in Python with"
            " sfss_ray.wrap_model"
        )
    return depth
