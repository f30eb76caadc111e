"""Walking the layers of a user's module, whatever attributes its layers have.

Networks of the field call a list of layers `modules` or `children`. Such an attribute hides torch's
method of that name, so nothing here calls those methods on a user's own layers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

OF_TRAINING = ("train", "eval", "children", "named_children")
"""Methods that `nn.Module.train` calls on every layer."""

OF_WALKS = (
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
"""Methods by which torch reads a network."""


def named_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of a module and all its layers, each once, as `nn.Module.named_modules` does."""
    known: set[int] = set()
    stack = [("", module)]
    while stack:
        name, layer = stack.pop()
        if id(layer) in known:
            continue
        known.add(id(layer))
        yield name, layer
        prefix = name + "." if name else ""
        children = [
            (prefix + key, child) for key, child in layer._modules.items() if child is not None
        ]
        stack.extend(reversed(children))


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """A module and all its layers, each once."""
    return (layer for _, layer in named_layers(module))


def layer_named(module: nn.Module, name: str) -> nn.Module:
    """The layer of a name that `named_layers` gives."""
    for part in name.split("."):
        child = module._modules[part]
        assert child is not None, "named_layers names no empty place"
        module = child
    return module


def weights_of(module: nn.Module) -> list[nn.Parameter]:
    """All parameters, each once, in the order of `nn.Module.parameters`."""
    weights = (p for layer in layers_of(module) for p in layer._parameters.values())
    return list({id(weight): weight for weight in weights if weight is not None}.values())


@contextlib.contextmanager
def torch_methods(module: nn.Module, names: tuple[str, ...] = OF_WALKS) -> Iterator[None]:
    """While the block runs, the named methods of every layer are torch's, or its class's own.

    Attributes that hide them are set aside and come back afterwards. A callable attribute stays: it was
    put there to replace the method.
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
        for attributes, name, value in hiding:
            attributes[name] = value
