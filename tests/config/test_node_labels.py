"""Label selectors: their syntax, as Ray checks it, and which nodes they name."""

from __future__ import annotations

import pytest
from ray._private.label_utils import validate_label_selector

from sfss_ray.config import ComputeConfig, Config, override
from sfss_ray.config.node_labels import matches, parse_selector
from sfss_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("", {}),
        ("market-type=spot", {"market-type": "spot"}),
        ("a=b,c=!d", {"a": "b", "c": "!d"}),
        (
            "region=!in(a, b), ray.io/zone=in(x,y-1)",
            {"region": "!in(a, b)", "ray.io/zone": "in(x,y-1)"},
        ),
    ],
)
def test_conditions_are_those_that_ray_takes(text, conditions):
    assert parse_selector(text) == conditions
    assert validate_label_selector(conditions) is None
    assert ComputeConfig(label_selector=text).label_selector == text


@pytest.mark.parametrize(
    "text", ["spot", "a=", "=b", "a=b c=d", "a=in()", "a=!!b", "a=b,a=c", "a=-b", "a=in(b"]
)
def test_other_texts_are_refused_in_one_line(text):
    with pytest.raises(
        ConfigError, match=r"^label_selector is .*: allowed is conditions"
    ) as refused:
        override(Config(), {"compute.label_selector": text})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("selector", "fits"),
    [
        ({}, True),
        ({"zone": "a"}, True),
        ({"zone": "b"}, False),
        ({"zone": "!b"}, True),
        ({"zone": "!a"}, False),
        ({"zone": "in(a, b)"}, True),
        ({"zone": "in(b,c)"}, False),
        ({"zone": "!in(b, c)"}, True),
        ({"zone": "!in(a,b)"}, False),
        ({"disk": "ssd"}, False),
        ({"disk": "!ssd"}, True),
        ({"zone": "a", "disk": "ssd"}, False),
    ],
)
def test_a_node_must_meet_every_condition(selector, fits):
    assert matches({"zone": "a"}, selector) is fits
