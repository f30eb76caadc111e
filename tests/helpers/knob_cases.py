"""Values of knobs that must be refused, as test cases, and the check that they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from sfss_ray.config import Config, override
from sfss_ray.errors import ConfigError


def cases(values_by_name: Mapping[str, Sequence[Any]]) -> list[tuple[str, Any]]:
    """Return one (name, value) pair for each value."""
    return [(name, value) for name, values in values_by_name.items() for value in values]


def assert_refused(name: str, value: Any) -> None:
    """Assert that a knob refuses a value in one line that names it and states what is allowed."""
    with pytest.raises(ConfigError, match=f"^{name.rpartition('.')[2]} is ") as refused:
        override(Config(), {name: value})
    assert "allowed is" in str(refused.value)
    assert "\n" not in str(refused.value)
