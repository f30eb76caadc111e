"""Numbers, changes and hyperparameters as people write them."""

import numpy as np
import pytest

from sfss_ray.report.formatting import (
    difference,
    format_change,
    format_knob,
    format_number,
    is_number,
)

NOT_NUMBERS = [None, float("nan"), float("inf"), np.float32("nan"), "x", True, np.bool_(True)]


@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_a_missing_number_is_a_dash(value):
    assert not is_number(value)
    assert format_number(value) == "-"


def test_settings_that_are_names_or_flags_are_written_as_they_are():
    assert [format_knob(value) for value in ("auto", True, False)] == ["auto", "true", "false"]
    assert [format_knob(value) for value in (None, float("nan"))] == ["-", "-"]


def test_numbers_have_fixed_decimals():
    assert format_number(np.float32(38.14)) == "38.1"
    assert format_number(7, 3) == "7.000"
    assert format_number(-0.0005, 2) == "-0.00"


@pytest.mark.parametrize(
    ("change", "text"),
    [(13.1, "+13.1"), (-0.4, "-0.4"), (0.04, "0.0"), (-0.01, "0.0"), (None, "-")],
)
def test_changes_have_a_sign_unless_they_round_to_zero(change, text):
    assert format_change(change) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1, "0.1"),
        (0.031234, "0.03123"),
        (0.999, "0.99900"),
        (0.9999999, "0.99999990"),
        (1.0, "1"),
        (2, "2"),
    ],
)
def test_a_momentum_near_one_keeps_the_digits_of_its_gap(value, text):
    assert format_knob(value) == text


def test_a_difference_needs_both_numbers():
    assert difference(38.0, np.float64(51.5)) == 13.5
    assert difference(None, 1.0) is None
    assert difference(1.0, float("nan")) is None
