"""Tables of the configuration page, generated from the config classes and the text below each field."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

from sfss_ray.config import Config

_UNION = (typing.Union, types.UnionType)


def config_tables() -> str:
    """Return one section per config class, in the order of the tree."""
    return "\n".join(_section(prefix, node) for prefix, node in _nodes("", Config()))


def field_docs(cls: type) -> dict[str, str]:
    """Return the string below each field of a class, on one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            docs[field.target.id] = " ".join(str(text.value.value).split())
    return docs


def _nodes(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Yield a config node and the nodes below it, each with its dotted prefix."""
    yield prefix, node
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            yield from _nodes(f"{prefix}{field.name}.", value)


def _section(prefix: str, node: Any) -> str:
    docs, hints = field_docs(type(node)), typing.get_type_hints(type(node), include_extras=True)
    heading = f"`{prefix.rstrip('.')}`" if prefix else "Top level"
    lines = [f"## {heading}", "", f"{inspect.getdoc(type(node))}", ""]
    lines += ["| setting | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if not dataclasses.is_dataclass(value):
            meaning = f"{_cell(docs.get(field.name, ''))} *Allowed: {allowed(hints[field.name])}.*"
            lines.append(f"| `{prefix}{field.name}` | `{_cell(_plain(value))}` | {meaning} |")
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> str:
    """Write a default as a config file does."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:.4g}" if value else "0.0"
    return str(value) or '""'


def allowed(hint: Any) -> str:
    """Describe the values that a type allows."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _constrained(arguments[0], hint.__metadata__)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in _UNION:
        kinds = [allowed(kind) for kind in arguments if kind is not type(None)]
        return " or ".join([*kinds, "null"])
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {allowed(arguments[0])}"
        return f"[{', '.join(allowed(kind) for kind in arguments)}]"
    names = {int: "whole number", float: "number", str: "text", bool: "true, false"}
    return names.get(hint, str(getattr(hint, "__name__", hint)))


def _constrained(plain: Any, notes: tuple[Any, ...]) -> str:
    """Describe a type with a constraint, which says itself what it allows."""
    entries = typing.get_args(plain)
    number = int if plain is int or entries[:1] == (int,) else float
    for note in notes:
        if hasattr(note, "describe"):
            text = str(note.describe(number)).partition(";")[0]
            return f"a number in {text}" if plain is float else text
    return allowed(plain)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
