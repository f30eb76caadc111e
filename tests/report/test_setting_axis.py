"""Axes of searched settings: logarithmic, linear, or one place per word."""

import pytest
from matplotlib.figure import Figure

from sfss_ray.report.report_record import TrialRow
from sfss_ray.report.setting_axis import SettingAxis


def trials(*values):
    return [TrialRow(f"trial {k}", {"train.x": value}) for k, value in enumerate(values)]


def axis_of(*values, name="train.x"):
    rows = [TrialRow("t", {name: value}) for value in values]
    return SettingAxis.of(name, name.rpartition(".")[2], rows), rows


def test_numbers_that_span_orders_of_magnitude_are_logarithmic():
    axis, rows = axis_of(0.03, 0.7)
    assert axis.label == "x (log)"
    assert axis.position(rows[1]) == 0.7
    assert axis.height(rows[0]) == pytest.approx(-1.5229, abs=1e-4)


@pytest.mark.parametrize("values", [(0.2, 1.0), (-1.0, 5.0), (0.0, 100.0), (3.0, 3.0)])
def test_other_numbers_are_linear(values):
    axis, rows = axis_of(*values)
    assert axis.label == "x"
    assert [axis.height(row) for row in rows] == list(values)


def test_a_momentum_is_drawn_by_its_distance_to_one():
    axis, rows = axis_of(0.99, 1.0, name="train.ema_momentum")
    assert axis.label == "1 - ema_momentum (log)"
    assert axis.position(rows[0]) == pytest.approx(0.01)
    assert axis.position(rows[1]) == 1e-7


def test_words_have_a_place_each():
    axis, rows = axis_of("frozen", "auto", "frozen")
    assert [axis.position(row) for row in rows] == [1, 0, 1]
    axes = Figure().subplots()
    axis.draw_ticks(axes)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["auto", "frozen"]
    flags, _ = axis_of(True, False)
    flags.draw_ticks(axes)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["false", "true"]
