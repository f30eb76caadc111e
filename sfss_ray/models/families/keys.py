"""From a loaded checkpoint to its flat tensors: containers opened, wrappers' prefixes taken off."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "student")
"""Entries that training programs keep the weights in."""
_WRAPPERS = (r"^module\.", r"^net\.", r"^model\.", r"^module\.")
"""Anchored: `ema_model.` and `backbone.module.` are names of their own. DDP may stand on both sides."""
_COMPILED = re.compile(r"(^|\.)_orig_mod\.")
"""torch.compile inserts this level, before or after DDP's, around a part or around the whole."""


def tensors_of(content: Any) -> dict[str, Tensor]:
    """All tensors of a checkpoint by key; empty when it holds none.

    A container (`state_dict`, `model`, ...) is opened; when several dicts of tensors stand side by
    side (`feature_extractor`, `classifier`), their keys are joined as `feature_extractor.KEY`.
    """
    if not isinstance(content, Mapping):
        return {}
    name = container_of(content)
    if name is not None:
        return _stripped(content[name])
    flat = _stripped(content)
    for name, inner in content.items():
        if isinstance(inner, Mapping) and has_tensors(inner):
            flat |= {f"{name}.{key}": value for key, value in _stripped(inner).items()}
    return flat


def container_of(content: Mapping[Any, Any]) -> str | None:
    """The entry of CONTAINERS that holds the weights, or None where they lie open."""
    for name in CONTAINERS:
        inner = content.get(name)
        if isinstance(inner, Mapping) and has_tensors(inner):
            return name
    return None


def has_tensors(values: Mapping[Any, Any]) -> bool:
    """Whether a value of the mapping is a tensor."""
    return any(isinstance(value, Tensor) for value in values.values())


def _stripped(values: Mapping[Any, Any]) -> dict[str, Tensor]:
    tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
    return {strip_wrappers(str(key)): value for key, value in tensors.items()}


def strip_wrappers(key: str) -> str:
    """`_orig_mod.` anywhere, then `module.`, `net.` and a leading `model.` off a key."""
    key = _COMPILED.sub(r"\1", key)
    for wrapper in _WRAPPERS:
        key = re.sub(wrapper, "", key)
    return key
