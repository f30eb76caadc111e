"""From a loaded checkpoint to its flat tensors: containers opened, wrappers' prefixes taken off."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network")
"""Entries that training programs keep the weights in."""
_WRAPPERS = (r"^module\.", r"^net\.", r"^model\.", r"^module\.")
"""Anchored: `ema_model.` and `backbone.module.` are names of their own. DDP may stand on both sides."""


def tensors_of(content: Any) -> dict[str, Tensor]:
    """All tensors of a checkpoint by key; empty when it holds none.

    A container (`state_dict`, `model`, ...) is opened; when several dicts of tensors stand side by
    side (`feature_extractor`, `classifier`), their keys are joined as `feature_extractor.KEY`.
    """
    if not isinstance(content, Mapping):
        return {}
    for name in CONTAINERS:
        inner = content.get(name)
        if isinstance(inner, Mapping) and _has_tensors(inner):
            return _stripped(inner)
    flat = _stripped(content)
    for name, inner in content.items():
        if isinstance(inner, Mapping) and _has_tensors(inner):
            flat |= {f"{name}.{key}": value for key, value in _stripped(inner).items()}
    return flat


def _has_tensors(values: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in values.values())


def _stripped(values: Mapping[Any, Any]) -> dict[str, Tensor]:
    tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
    return {strip_wrappers(str(key)): value for key, value in tensors.items()}


def strip_wrappers(key: str) -> str:
    """`module.`, then `net.`, then a leading `model.` off a key."""
    for wrapper in _WRAPPERS:
        key = re.sub(wrapper, "", key)
    return key
