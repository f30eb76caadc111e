"""Traversal of a user's module that works whatever attributes its layers have.

Networks of the field name a list of layers `modules` or `children`. Such an attribute hides torch's
method of that name, so the functions here never call those methods on a user's layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

TRAIN_METHODS = ("train", "eval", "children", "named_children")
"""The methods that `nn.Module.train` calls on every layer."""

TRAVERSAL_METHODS = (
    "modules",
    "named_modules",
    "children",
    "named_children",
    "parameters",
    "named_parameters",
    "buffers",
    "named_buffers",
    "state_dict",
)
"""The methods by which torch traverses a network."""


def named_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, layer) for a module and all its layers, as `nn.Module.named_modules` does."""
    visited: set[int] = set()
    stack = [("", module)]
    while stack:
        name, layer = stack.pop()
        if id(layer) in visited:
            continue
        visited.add(id(layer))
        yield name, layer
        prefix = name + "." if name else ""
        children = [
            (prefix + key, child) for key, child in layer._modules.items() if child is not None
        ]
        stack.extend(reversed(children))


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """Return an iterator over a module and all its layers, each once."""
    return (layer for _, layer in named_layers(module))


def layer_named(module: nn.Module, name: str) -> nn.Module:
    """Return the layer of a name that `named_layers` yields."""
    for part in name.split("."):
        child = module._modules[part]
        assert child is not None, "named_layers skips registered names without a layer"
        module = child
    return module


def weights_of(module: nn.Module) -> list[nn.Parameter]:
    """Return all parameters, each once, in the order of `nn.Module.parameters`."""
    weights = (p for layer in layers_of(module) for p in layer._parameters.values())
    return list({id(weight): weight for weight in weights if weight is not None}.values())


@contextlib.contextmanager
def torch_methods(module: nn.Module, names: tuple[str, ...] = TRAVERSAL_METHODS) -> Iterator[None]:
    """Remove attributes that hide torch's methods from all layers while the block runs.

    The attributes are restored afterwards. Callable attributes stay, because they replace the method on
    purpose.

    Args:
        module: The module whose layers are changed.
        names: The methods to uncover.
    """
    hiding = [
        (vars(layer), name, vars(layer)[name])
        for layer in layers_of(module)
        for name in names
        if name in vars(layer) and not callable(vars(layer)[name])
    ]
    for attributes, name, _ in hiding:
        del attributes[name]
    try:
        yield
    finally:
        for attributes, name, attribute in hiding:
            attributes[name] = attribute
