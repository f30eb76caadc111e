"""Frozen dataclasses to JSON values and back, by their type hints."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from sfss_ray.errors import DataError


def to_plain(value: Any) -> Any:
    """Convert records, numpy values and paths to strict JSON values; NaN and Inf become None.

    An attribute that is None is left out, unless its class sets WRITES_NULL.
    """
    if dataclasses.is_dataclass(value):
        keeps_none = getattr(value, "WRITES_NULL", False)
        pairs = [(part.name, getattr(value, part.name)) for part in dataclasses.fields(value)]
        return {name: to_plain(part) for name, part in pairs if keeps_none or part is not None}
    if isinstance(value, Mapping):
        return {str(key): to_plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(part) for part in value]
    if hasattr(value, "tolist"):  # numpy arrays and scalars, without importing numpy
        return to_plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def decode(kind: Any, value: Any, origin: str, where: str = "") -> Any:
    """Convert a JSON value to an annotated type: a dataclass, tuple[X, ...], dict[str, X], X | None.

    Unknown keys of an object are ignored.

    Args:
        kind: The type.
        value: Parsed JSON.
        origin: Name of the file, for errors.
        where: Path of the value within the file, for errors.

    Raises:
        DataError: the value has another type, or a key without a default is missing.
    """
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        (kind,) = [part for part in kind.__args__ if part is not types.NoneType]
    if kind is Any:
        return value
    container = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _decode_record(kind, value, origin, where)
    if container is tuple and isinstance(value, list):
        part = typing.get_args(kind)[0]
        return tuple(
            decode(part, element, origin, f"{where}[{index}]")
            for index, element in enumerate(value)
        )
    if container is dict and isinstance(value, dict):
        part = typing.get_args(kind)[1]
        return {key: decode(part, v, origin, f"{where}.{key}") for key, v in value.items()}
    if _is_scalar(kind, value):
        return value
    raise DataError(
        f"{origin} is not the report of a run: {where or 'the content'} is {str(value)[:60]!r},"
        f" expected is {_json_name(kind)}: give a report.json that sfss_ray wrote"
    )


def _decode_record(kind: Any, values: dict[str, Any], origin: str, where: str) -> Any:
    hints, prefix = typing.get_type_hints(kind), f"{where}." if where else ""
    parts = dataclasses.fields(kind)
    missing = [part.name for part in parts if _is_required(part) and part.name not in values]
    if missing:
        raise DataError(
            f"{origin} is not the report of a run: {prefix}{missing[0]} is missing: give a"
            " report.json that sfss_ray wrote"
        )
    names = [part.name for part in parts if part.name in values]
    return kind(**{n: decode(hints[n], values[n], origin, prefix + n) for n in names})


def _is_required(part: dataclasses.Field) -> bool:
    return part.default is dataclasses.MISSING and part.default_factory is dataclasses.MISSING


def _is_scalar(kind: Any, value: Any) -> bool:
    """Whether a JSON value fits str, bool, int or float; an int is a float too."""
    if isinstance(value, bool):
        return kind is bool
    return kind in (str, int, float) and isinstance(value, (int, float) if kind is float else kind)


def _json_name(kind: Any) -> str:
    """The name that JSON has for a type."""
    if typing.get_origin(kind) is tuple:
        return "a list"
    return kind.__name__ if kind in (str, int, float, bool) else "an object"
