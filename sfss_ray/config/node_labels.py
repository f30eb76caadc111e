"""Label selectors: conditions on the labels of a cluster's nodes, in Ray's own syntax."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY = rf"(?:{_NAME}/)?{_NAME}"
_VALUE = rf"!?(?:{_NAME}|in\({_NAME}(?:, ?{_NAME})*\))"
_CONDITION = re.compile(rf"\s*({_KEY})=({_VALUE})\s*(?:,|$)")


def parse_selector(text: str) -> dict[str, str]:
    """Return the conditions of a selector as Ray takes them, by the labels' names.

    Args:
        text: Conditions with commas between them, such as `market-type=spot, region=!in(a, b)`.
            A condition is `name=value`, `name=!value`, `name=in(a, b)` or `name=!in(a, b)`. An empty
            text has no condition.

    Raises:
        ValueError: the text is not of this form, or names a label twice.
    """
    conditions: dict[str, str] = {}
    end = 0
    while end < len(text.rstrip()):
        match = _CONDITION.match(text, end)
        if match is None or match[1] in conditions:
            raise ValueError(f"{text!r} is not a label selector")
        conditions[match[1]] = match[2]
        end = match.end()
    return conditions


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Return whether a node's labels meet all conditions; a missing label meets `!` alone."""
    return all(_meets(labels.get(name), condition) for name, condition in selector.items())


def _meets(label: str | None, condition: str) -> bool:
    text = condition.removeprefix("!")
    values = re.split(r", ?", text[3:-1]) if text.startswith("in(") else [text]
    return (label in values) != condition.startswith("!")


class Selector:
    """A text that is empty or a label selector."""

    def allows(self, value: Any, number: type) -> bool:
        """Return whether a value can be parsed."""
        if not isinstance(value, str):
            return False
        try:
            parse_selector(value)
        except ValueError:
            return False
        return True

    def describe(self, number: type) -> str:
        """Return the allowed values in words."""
        return "conditions such as market-type=spot, region=!in(a, b); leave it empty for any node"
