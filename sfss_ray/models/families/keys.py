"""The flat tensors of a loaded checkpoint: containers are opened, wrapper prefixes are removed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

State = Mapping[str, Tensor]
"""Tensors by key, as in a state dict."""

CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "student")
"""Entries under which training programs save the weights."""
_WRAPPERS = (r"^module\.", r"^net\.", r"^model\.", r"^module\.")
"""Anchored at the start, since `ema_model.` and `backbone.module.` are real names. DDP may wrap either
the network or the whole training module, so its prefix is removed twice."""
_COMPILED = re.compile(r"(^|\.)_orig_mod\.")
"""The level that torch.compile inserts around the whole network or a part of it."""


def tensors_of(content: Any) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint by key, or an empty dict if it has none.

    A container (`state_dict`, `model`, ...) is opened. Without one, the keys of several dicts of tensors
    (`feature_extractor`, `classifier`) are joined, as in `feature_extractor.KEY`.
    """
    if not isinstance(content, Mapping):
        return {}
    container = container_of(content)
    if container is not None:
        return _strip_all(content[container])
    flat = _strip_all(content)
    for name, part in content.items():
        if isinstance(part, Mapping) and has_tensors(part):
            flat |= {f"{name}.{key}": tensor for key, tensor in _strip_all(part).items()}
    return flat


def container_of(content: Mapping[Any, Any]) -> str | None:
    """Return the entry of CONTAINERS that holds the weights, or None if they are not in a container."""
    for name in CONTAINERS:
        part = content.get(name)
        if isinstance(part, Mapping) and has_tensors(part):
            return name
    return None


def has_tensors(entries: Mapping[Any, Any]) -> bool:
    """Whether any entry of a mapping is a tensor."""
    return any(isinstance(entry, Tensor) for entry in entries.values())


def _strip_all(entries: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors among the entries, without the prefixes of wrappers."""
    tensors = {key: entry for key, entry in entries.items() if isinstance(entry, Tensor)}
    return {strip_wrappers(str(key)): tensor for key, tensor in tensors.items()}


def strip_wrappers(key: str) -> str:
    """Remove `_orig_mod.` anywhere, then leading `module.`, `net.` and `model.`, from a key."""
    key = _COMPILED.sub(r"\1", key)
    for wrapper in _WRAPPERS:
        key = re.sub(wrapper, "", key)
    return key


def has_prefix(state: State, prefix: str) -> bool:
    """Whether any key starts with a prefix."""
    return any(key.startswith(prefix) for key in state)


def subtree(state: State, prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose keys start with a prefix, under their keys without it."""
    return {
        key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)
    }
