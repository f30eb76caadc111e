"""Recogniser of torchvision's own segmentation models: DeepLabV3, FCN, LR-ASPP."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from sfss_ray.models.families.keys import State, has_prefix
from sfss_ray.models.families.recognised_file import RecognisedFile

_FAMILY = "torchvision"
_MOBILENET = "mobilenet_v3_large"
_LAST_LAYER = "classifier.4."


def torchvision_model(state: State, content: Any) -> RecognisedFile | None:
    """Recognise `backbone.*` and `classifier.*` with torchvision's names."""
    backbone = _backbone_name(state)
    if backbone is None or has_prefix(state, "decode_head."):
        return None
    if has_prefix(state, "classifier.low_classifier."):
        return _lraspp(state) if backbone == _MOBILENET else None
    if "classifier.0.convs.0.0.weight" in state:
        return _deeplab_or_fcn(state, f"deeplabv3_{backbone}")
    first_layer = state.get("classifier.0.weight")
    if first_layer is not None and first_layer.ndim == 4 and backbone != _MOBILENET:
        return _deeplab_or_fcn(state, f"fcn_{backbone}")
    return None


def _backbone_name(state: State) -> str | None:
    if "backbone.0.0.weight" in state:
        return _MOBILENET
    matches = [re.match(r"backbone\.layer3\.(\d+)\.conv3\.", key) for key in state]
    block_indices = [int(match[1]) for match in matches if match]
    if not block_indices:
        return None
    return "resnet101" if max(block_indices) > 5 else "resnet50"


def _deeplab_or_fcn(state: State, network: str) -> RecognisedFile:
    """Separate the head's last convolution, which is the classifier here."""
    renamed, unused = {}, []
    for key, tensor in state.items():
        if key.startswith(_LAST_LAYER):
            renamed[f"classifier.{key.removeprefix(_LAST_LAYER)}"] = tensor
        elif key.startswith("classifier."):
            renamed[f"body.head.{key.removeprefix('classifier.')}"] = tensor
        elif key.startswith("aux_classifier."):
            unused.append(key)
        else:
            renamed[f"body.{key}"] = tensor
    outputs = state.get(f"{_LAST_LAYER}weight", state.get(f"{_LAST_LAYER}bias"))
    # Without the last layer, any number builds a network for the loader to name what is missing.
    num_classes = 1 if outputs is None else outputs.shape[0]
    return RecognisedFile(_FAMILY, network, num_classes, renamed, tuple(unused))


def _lraspp(state: State) -> RecognisedFile:
    """Merge the two classifiers into one convolution of the joined features (see `lraspp`)."""
    renamed: dict[str, Tensor] = {}
    high: dict[str, Tensor] = {}
    low: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.startswith("classifier.high_classifier."):
            high[key.rpartition(".")[2]] = tensor
        elif key.startswith("classifier.low_classifier."):
            low[key.rpartition(".")[2]] = tensor
        elif key.startswith("classifier."):
            renamed[f"body.{key.removeprefix('classifier.')}"] = tensor
        else:
            renamed[f"body.{key}"] = tensor
    # W_high x_high + b_high + W_low x_low + b_low = [W_high W_low] [x_high; x_low] + (b_high + b_low)
    if "weight" in high and "weight" in low:
        renamed["classifier.weight"] = torch.cat([high["weight"], low["weight"]], 1)
    if "bias" in high and "bias" in low:
        renamed["classifier.bias"] = high["bias"] + low["bias"]
    num_classes = next(iter((low | high).values())).shape[0]
    return RecognisedFile(_FAMILY, f"lraspp_{_MOBILENET}", num_classes, renamed)
