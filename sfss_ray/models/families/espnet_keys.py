"""Recognisers of the authors' checkpoints of ESPNet and ESPNetv2.

Both were trained on Cityscapes with 20 outputs: the 19 classes and the background.
"""

from __future__ import annotations

import re
from typing import Any

from sfss_ray.data.class_sets import CITYSCAPES_19
from sfss_ray.errors import CheckpointError
from sfss_ray.models.architectures.espnet_v2 import WIDTHS
from sfss_ray.models.card import Card
from sfss_ray.models.families.keys import State, has_prefix
from sfss_ray.models.families.recognised_file import RecognisedFile

BACKGROUND = "background"
_CLASSES = (*CITYSCAPES_19.classes, BACKGROUND)
# The authors subtract the mean from BGR pixels of 0 to 255, divide by the deviation, then by 255.
_ESPNET_CARD = Card(
    mean=(72.3923111, 82.90893555, 73.15840149),
    std=(45.3192215 * 255, 46.15289307 * 255, 44.91483307 * 255),
    channel_order="bgr",
    value_range=255,
)
_ESPNET_V2_CARD = Card(align_corners=True)
_V2_CLASSIFIER = "bu_dec_l4.merge_layer.3."


def espnet_checkpoint(state: State, content: Any) -> RecognisedFile | None:
    """Recognise ESPNet by its encoder and the decoder's `level3_C`.

    Raises:
        CheckpointError: the encoder alone, which the authors publish as ESPNet-C.
    """
    if all(has_prefix(state, prefix) for prefix in ("level1.conv.", "b1.", "level2_0.c1.")):
        raise CheckpointError(
            "this is ESPNet-C, the encoder without ESPNet's decoder: give the file of the whole ESPNet,"
            " or the authors' class ESPNet_Encoder with --architecture FILE.py:FUNCTION"
        )
    if not has_prefix(state, "encoder.level1.conv.") or not has_prefix(state, "level3_C."):
        return None
    renamed = {
        name if name.startswith("classifier.") else f"body.{name}": tensor
        for name, tensor in state.items()
    }
    blocks = {level: _num_blocks(state, f"encoder.{level}") for level in ("level2", "level3")}
    outputs = _outputs(state, "level3_C.conv.weight")
    return RecognisedFile(
        "ESPNet",
        "espnet",
        outputs,
        renamed,
        options={"p": blocks["level2"], "q": blocks["level3"], "width": outputs},
        card=_card_for(_ESPNET_CARD, outputs),
    )


def espnet_v2_checkpoint(state: State, content: Any) -> RecognisedFile | None:
    """Recognise ESPNetv2 by its encoder `base_net` and the first stage of its decoder."""
    if not has_prefix(state, "base_net.level1.conv.") or not has_prefix(state, "bu_dec_l1."):
        return None
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(_V2_CLASSIFIER):
            renamed[f"classifier.{name.removeprefix(_V2_CLASSIFIER)}"] = tensor
        else:
            renamed[f"body.{name}"] = tensor
    outputs = _outputs(state, f"{_V2_CLASSIFIER}weight")
    return RecognisedFile(
        "ESPNetv2",
        "espnet_v2",
        outputs,
        renamed,
        options={"scale": _scale(state), "pool_width": _pool_width(state, outputs)},
        card=_card_for(_ESPNET_V2_CARD, outputs),
    )


def _outputs(state: State, key: str) -> int:
    """Return the number of outputs. Without the tensor, the loader should name it and no other one."""
    return state[key].shape[0] if key in state else len(_CLASSES)


def _card_for(card: Card, outputs: int) -> Card:
    """Return the card with the names of the outputs, if they are those of Cityscapes."""
    return card.replaced({"classes": _CLASSES}) if outputs == len(_CLASSES) else card


def _num_blocks(state: State, level: str) -> int:
    indices = [re.match(rf"{re.escape(level)}\.(\d+)\.", name) for name in state]
    return max((int(match[1]) + 1 for match in indices if match), default=0)


def _scale(state: State) -> float:
    """Return the scale whose last stage has as many channels as the file's, 1 if there is none."""
    last = state.get("base_net.level4_0.act.weight")
    width = None if last is None else last.shape[0]
    return next((scale for scale, widths in WIDTHS.items() if widths[-1] == width), 1.0)


def _pool_width(state: State, outputs: int) -> int:
    projection = state.get("bu_dec_l1.projection_layer.cbr.0.weight")
    return outputs // 2 if projection is None else projection.shape[0]
