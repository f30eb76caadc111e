"""Parser of the configuration that mmsegmentation saves in a checkpoint. The text is never executed.

The configuration is in `meta['cfg']` (mmengine) or `meta['config']` (mmcv), as a dict or as the text of
a Python file. Of the text, only literals, `dict(...)` calls, simple arithmetic and names assigned
before are evaluated; entries with any other value are dropped.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any

Config = Mapping[str, Any]
_META_KEYS = ("cfg", "config")
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
_FILE_NAME_LINE = re.compile(r"^\s*\S+\.py\s*$", re.MULTILINE)
"""mmcv joins the texts of a file and of its bases, each after a line with its path."""


def has_config(content: Any) -> bool:
    """Whether the `meta` of a checkpoint has a configuration, readable or not."""
    return bool(_config_entries(content))


def config_of(content: Any) -> Config | None:
    """Return the configuration in the `meta` of a checkpoint, or None if none can be read."""
    for entry in _config_entries(content):
        config = parse_config(entry) if isinstance(entry, str) else entry
        if isinstance(config, Mapping) and isinstance(config.get("model"), Mapping):
            return config
    return None


def _config_entries(content: Any) -> list[Any]:
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping):
        return []
    return [meta[key] for key in _META_KEYS if meta.get(key)]


def parse_config(source: str) -> dict[str, Any]:
    """Return the values that a configuration assigns, or an empty dict if it is not Python."""
    try:
        statements = ast.parse(_FILE_NAME_LINE.sub("", source)).body
        variables: dict[str, Any] = {}
        for statement in statements:
            if isinstance(statement, ast.Assign):
                assigned = _evaluate(statement.value, variables)
                for target in statement.targets:
                    if isinstance(target, ast.Name):
                        variables[target.id] = _merge(variables.get(target.id), assigned)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    return {name: value for name, value in variables.items() if value is not _UNKNOWN}


def nested_entry(config: Config | None, *path: str) -> Any:
    """Return the entry under nested keys, or None."""
    entry: Any = config
    for key in path:
        if not isinstance(entry, Mapping):
            return None
        entry = entry.get(key)
    return entry


def _merge(base: Any, override: Any) -> Any:
    """Merge dicts as mmcv merges a file with its bases; any other value replaces its base."""
    if not (isinstance(base, dict) and isinstance(override, dict)):
        return override
    if override.get("_delete_"):
        return {key: v for key, v in override.items() if key != "_delete_"}
    return base | {key: _merge(base.get(key), v) for key, v in override.items()}


def _evaluate(node: ast.expr, variables: dict[str, Any]) -> Any:
    """Return the value of an expression, or _UNKNOWN if it is not a plain value."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        elements = [_evaluate(element, variables) for element in node.elts]
        return _UNKNOWN if any(element is _UNKNOWN for element in elements) else elements
    if isinstance(node, ast.Dict):
        keys = [None if key is None else _evaluate(key, variables) for key in node.keys]
        return _evaluate_dict(zip(keys, node.values, strict=True), variables)
    if isinstance(node, ast.Name):
        return variables.get(node.id, _UNKNOWN)
    if isinstance(node, ast.Call):
        return _evaluate_call(node, variables)
    return _evaluate_arithmetic(node, variables)


def _evaluate_dict(
    pairs: Iterable[tuple[Any, ast.expr]], variables: dict[str, Any]
) -> dict[Any, Any]:
    """Return a dict without the entries of unknown value. The key None unpacks another dict."""
    evaluated: dict[Any, Any] = {}
    for key, node in pairs:
        value = _evaluate(node, variables)
        if value is _UNKNOWN:
            continue
        if key is None:
            evaluated |= value if isinstance(value, dict) else {}
        elif isinstance(key, (str, int, float)):
            evaluated[key] = value
    return evaluated


def _evaluate_call(node: ast.Call, variables: dict[str, Any]) -> Any:
    """Evaluate dict(a=1, **b), and list(...) or tuple(...) of one sequence."""
    function = node.func.id if isinstance(node.func, ast.Name) else ""
    arguments = [_evaluate(argument, variables) for argument in node.args]
    if function in ("dict", "ConfigDict") and all(isinstance(a, dict) for a in arguments[:1]):
        base = dict(arguments[0]) if arguments else {}
        return base | _evaluate_dict(((k.arg, k.value) for k in node.keywords), variables)
    if function in ("list", "tuple") and len(arguments) == 1 and isinstance(arguments[0], list):
        return arguments[0]
    return _UNKNOWN


def _evaluate_arithmetic(node: ast.expr, variables: dict[str, Any]) -> Any:
    """Evaluate signed numbers, arithmetic of two numbers, and sums of two lists."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        operand = _evaluate(node.operand, variables)
        if isinstance(operand, (int, float)):
            return -operand if isinstance(node.op, ast.USub) else operand
    if isinstance(node, ast.BinOp):
        operation = _ARITHMETIC.get(type(node.op))
        a, b = _evaluate(node.left, variables), _evaluate(node.right, variables)
        are_lists = isinstance(a, list) and isinstance(b, list) and operation is operator.add
        # Limits on the operands keep a hostile text from filling the memory.
        short_lists = are_lists and len(a) + len(b) <= _LARGEST_LIST
        if operation is not None and (short_lists or (_is_small(a) and _is_small(b))):
            try:
                return operation(a, b)
            except ArithmeticError:
                return _UNKNOWN
    return _UNKNOWN


def _is_small(operand: Any) -> bool:
    """Whether an operand is a number small enough that arithmetic stays cheap."""
    return isinstance(operand, (int, float)) and abs(operand) <= _LARGEST_NUMBER
