"""Checkpoints of torchvision's own segmentation models: DeepLabV3, FCN, LR-ASPP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sfss_ray.models.families.recognised_file import Recognised

_FAMILY = "torchvision"
_LAST = "classifier.4."


def torchvision_model(state: Mapping[str, Tensor], content: Any) -> Recognised | None:
    """`backbone.*` and `classifier.*` under torchvision's names; the auxiliary head is not needed."""
    backbone = _backbone(state)
    if backbone is None or any(key.startswith("decode_head.") for key in state):
        return None
    if any(key.startswith("classifier.low_classifier.") for key in state):
        return _lraspp(state) if backbone == "mobilenet_v3_large" else None
    if "classifier.0.convs.0.0.weight" in state:
        return _with_last_convolution(state, f"deeplabv3_{backbone}")
    first = state.get("classifier.0.weight")
    if first is not None and first.ndim == 4 and backbone != "mobilenet_v3_large":
        return _with_last_convolution(state, f"fcn_{backbone}")
    return None


def _backbone(state: Mapping[str, Tensor]) -> str | None:
    if "backbone.0.0.weight" in state:
        return "mobilenet_v3_large"
    blocks = [re.match(r"backbone\.layer3\.(\d+)\.conv3\.", key) for key in state]
    numbers = [int(match[1]) for match in blocks if match]
    if not numbers:
        return None
    return "resnet101" if max(numbers) > 5 else "resnet50"


def _with_last_convolution(state: Mapping[str, Tensor], network: str) -> Recognised:
    renamed, unused = {}, []
    for key, value in state.items():
        if key.startswith(_LAST):
            renamed[f"classifier.{key.removeprefix(_LAST)}"] = value
        elif key.startswith("classifier."):
            renamed[f"body.head.{key.removeprefix('classifier.')}"] = value
        elif key.startswith("aux_classifier."):
            unused.append(key)
        else:
            renamed[f"body.{key}"] = value
    outputs = state.get(f"{_LAST}weight", state.get(f"{_LAST}bias"))
    number = 1 if outputs is None else outputs.shape[0]
    return Recognised(_FAMILY, network, number, renamed, tuple(unused))


def _lraspp(state: Mapping[str, Tensor]) -> Recognised:
    """The two classifiers become one convolution of both features side by side (see `lraspp`)."""
    renamed, high, low = {}, {}, {}
    for key, value in state.items():
        if key.startswith("classifier.high_classifier."):
            high[key.rpartition(".")[2]] = value
        elif key.startswith("classifier.low_classifier."):
            low[key.rpartition(".")[2]] = value
        elif key.startswith("classifier."):
            renamed[f"body.{key.removeprefix('classifier.')}"] = value
        else:
            renamed[f"body.{key}"] = value
    if "weight" in high and "weight" in low:
        renamed["classifier.weight"] = torch.cat([high["weight"], low["weight"]], 1)
    if "bias" in high and "bias" in low:
        renamed["classifier.bias"] = high["bias"] + low["bias"]
    number = next(iter((low | high).values())).shape[0]
    return Recognised(_FAMILY, "lraspp_mobilenet_v3_large", number, renamed)
