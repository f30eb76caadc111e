"""The configuration that mmsegmentation keeps in a checkpoint, read without running it.

It stands in `meta['cfg']` (mmengine) or `meta['config']` (mmcv) as the text of a Python file or as a
dict. The text is parsed, never executed: literals, `dict(...)` calls and names assigned before are
understood, anything else counts as absent.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]
_ENTRIES = ("cfg", "config")
_UNKNOWN = object()
_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_LARGEST_NUMBER = 10**12
_LARGEST_LIST = 10**4
_FILE_NAME = re.compile(r"^\s*\S+\.py\s*$", re.MULTILINE)
"""mmcv joins the texts of a file and of its bases, each after a line with its path."""


def has_config(content: Any) -> bool:
    """Whether a checkpoint's `meta` has an entry for a configuration."""
    return bool(_entries(content))


def _entries(content: Any) -> list[Any]:
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping):
        return []
    return [meta[name] for name in _ENTRIES if meta.get(name)]


def config_of(content: Any) -> Config | None:
    """The configuration in a checkpoint's `meta`, or None where there is none that can be read."""
    for value in _entries(content):
        found = parse_config(value) if isinstance(value, str) else value
        if isinstance(found, Mapping) and isinstance(found.get("model"), Mapping):
            return found
    return None


def parse_config(text: str) -> dict[str, Any]:
    """The values a configuration's text assigns; empty where it is no Python."""
    try:
        statements = ast.parse(_FILE_NAME.sub("", text)).body
        names: dict[str, Any] = {}
        for statement in statements:
            if isinstance(statement, ast.Assign):
                value = _value(statement.value, names)
                for target in statement.targets:
                    if isinstance(target, ast.Name):
                        names[target.id] = _inherited(names.get(target.id), value)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    return {name: value for name, value in names.items() if value is not _UNKNOWN}


def entry(config: Config | None, *path: str) -> Any:
    """The value under nested keys, or None."""
    value: Any = config
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def _inherited(base: Any, value: Any) -> Any:
    """Dicts take over what a base's dict says, as mmcv merges a file with its bases."""
    if not (isinstance(base, dict) and isinstance(value, dict)):
        return value
    if value.get("_delete_"):
        return {key: v for key, v in value.items() if key != "_delete_"}
    return base | {key: _inherited(base.get(key), v) for key, v in value.items()}


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    """What an expression means, _UNKNOWN where it is more than values."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        values = [_value(item, names) for item in node.elts]
        return _UNKNOWN if any(value is _UNKNOWN for value in values) else values
    if isinstance(node, ast.Dict):
        keys = [None if key is None else _value(key, names) for key in node.keys]
        return _mapping(zip(keys, node.values, strict=True), names)
    if isinstance(node, ast.Name):
        return names.get(node.id, _UNKNOWN)
    if isinstance(node, ast.Call):
        return _call(node, names)
    return _number(node, names)


def _mapping(pairs: Any, names: dict[str, Any]) -> dict[Any, Any]:
    """A dict of the understood values; key None unpacks another dict."""
    result: dict[Any, Any] = {}
    for key, node in pairs:
        value = _value(node, names)
        if value is _UNKNOWN:
            continue
        if key is None:
            result |= value if isinstance(value, dict) else {}
        elif isinstance(key, (str, int, float)):
            result[key] = value
    return result


def _call(node: ast.Call, names: dict[str, Any]) -> Any:
    """dict(a=1, **b), and list(...) or tuple(...) of one sequence."""
    called = node.func.id if isinstance(node.func, ast.Name) else ""
    arguments = [_value(argument, names) for argument in node.args]
    if called in ("dict", "ConfigDict") and all(isinstance(a, dict) for a in arguments[:1]):
        base = dict(arguments[0]) if arguments else {}
        return base | _mapping(((k.arg, k.value) for k in node.keywords), names)
    if called in ("list", "tuple") and len(arguments) == 1 and isinstance(arguments[0], list):
        return arguments[0]
    return _UNKNOWN


def _number(node: ast.expr, names: dict[str, Any]) -> Any:
    """-1, 2 * 4, and sums of lists."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _value(node.operand, names)
        if isinstance(value, (int, float)):
            return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        operation = _ARITHMETIC.get(type(node.op))
        left, right = _value(node.left, names), _value(node.right, names)
        lists = isinstance(left, list) and isinstance(right, list) and operation is operator.add
        small = lists and len(left) + len(right) <= _LARGEST_LIST
        if operation is not None and (small or (_is_small(left) and _is_small(right))):
            try:
                return operation(left, right)
            except ArithmeticError:
                return _UNKNOWN
    return _UNKNOWN


def _is_small(value: Any) -> bool:
    """Whether it is a number whose products stay cheap."""
    return isinstance(value, (int, float)) and abs(value) <= _LARGEST_NUMBER
