"""Class groups from a mapping, a JSON or YAML file, or the name of a shipped grouping."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sfss_ray.data.class_groups import ClassGroups
from sfss_ray.data.class_sets import ClassSet
from sfss_ray.data.shipped_groups import SHIPPED_NAMES, shipped_grouping
from sfss_ray.errors import DataError
from sfss_ray.storage.places import ObjectPath, Place, parsed
from sfss_ray.storage.text import limited_nesting, read_text

ClassGroupsLike = ClassGroups | Mapping[str, Sequence[str]] | Place | str
"""Groups of a model's classes: a mapping {group: [classes]}, a JSON or YAML file of one, or the name of
a shipped grouping (`SHIPPED_NAMES`). The key `dropped` lists classes that belong to no group."""

DROPPED = "dropped"
_EXAMPLE = '{"building": ["building", "wall"], "sky": ["sky"], "dropped": ["background"]}'


def find_class_groups(class_groups: ClassGroupsLike, classes: ClassSet) -> ClassGroups:
    """Return the groups that a user gave, fitted to a model's classes.

    Args:
        class_groups: See `ClassGroupsLike`. A shipped name wins over a file of this name.
        classes: The model's classes.

    Raises:
        DataError: the file cannot be read or holds something else, the groups do not fit the classes
            (see `ClassGroups.fitted`), or `class_groups` is of another type.
    """
    if isinstance(class_groups, ClassGroups):
        return class_groups.fitted(classes)
    if isinstance(class_groups, Mapping):
        return parse_groups("custom", class_groups).fitted(classes)
    if isinstance(class_groups, (str, os.PathLike, ObjectPath)):
        if str(class_groups) in SHIPPED_NAMES:
            return shipped_grouping(str(class_groups), classes)
        groups = parsed(class_groups)
        return read_groups(Path(groups) if isinstance(groups, str) else groups).fitted(classes)
    value = " ".join(reprlib.repr(class_groups).split())
    raise DataError(
        f"class groups are of type {type(class_groups).__name__} ({value}): give a"
        f" mapping such as {_EXAMPLE}, a JSON or YAML file of one, or the name of a shipped grouping"
        f" ({', '.join(SHIPPED_NAMES)})"
    )


def parse_groups(name: str, groups: Mapping[Any, Any]) -> ClassGroups:
    """Return the groups of a mapping {group: [classes]}, of which `dropped` is no group.

    Raises:
        DataError: a name is no text, or a group is no list of names.
    """
    lists = {group: _names(name, group, members) for group, members in groups.items()}
    dropped = lists.pop(DROPPED, ())
    return ClassGroups(name, tuple(lists.items()), dropped)


def read_groups(path: Place) -> ClassGroups:
    """Read the groups of a JSON or YAML file; the stem of its name is their name.

    Raises:
        DataError: there is no such file, it holds no mapping, or it names a group twice.
    """
    try:
        with limited_nesting():
            content = _parse(read_text(path), is_json=path.suffix == ".json")
    except FileNotFoundError as error:
        raise DataError(
            f"class groups {str(path)!r} are neither a file nor a shipped grouping: shipped are"
            f" {', '.join(SHIPPED_NAMES)}; or give a JSON or YAML file such as {_EXAMPLE}"
        ) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise DataError(
            f"cannot read class groups {str(path)!r} ({reason}): give a JSON or YAML file such as"
            f" {_EXAMPLE}"
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            f"class groups {str(path)!r} hold a {type(content).__name__}: give a JSON or YAML file such"
            f" as {_EXAMPLE}"
        )
    return parse_groups(path.stem, content)


def _names(name: str, group: Any, members: Any) -> tuple[str, ...]:
    """Return the members of a group; a text alone is one member."""
    names = (members,) if isinstance(members, str) else members
    is_list = isinstance(names, (list, tuple))
    if not isinstance(group, str) or not is_list or not all(isinstance(n, str) for n in names):
        raise DataError(
            f"class groups {name!r}: {group!r} is {members!r}: give names as text, a list of classes for"
            f" each group, such as {_EXAMPLE}"
        )
    return tuple(names)


class _Loader(yaml.SafeLoader):
    """The safe loader, which refuses a key that stands twice in a mapping."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    pairs = [
        (loader.construct_object(k), loader.construct_object(v, deep=True)) for k, v in node.value
    ]
    return _unique(pairs)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _parse(text: str, is_json: bool) -> Any:
    if is_json:
        return json.loads(text, object_pairs_hook=_unique)
    return yaml.load(text, Loader=_Loader)  # a subclass of the safe loader


def _unique(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return pairs as a dict; both formats would silently drop the first of two equal keys."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} is listed twice")
    return content
